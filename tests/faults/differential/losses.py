"""Losses of a case, PyTorch's or ours, and their targets."""

import functools

import torch
import torch.nn.functional as F
from torch import nn

import mlp_ext

MODULES = {
    "ce": "CrossEntropyLoss",
    "mse": "MSELoss",
    "l1": "L1Loss",
    "huber": "HuberLoss",
    "smooth_l1": "SmoothL1Loss",
    "bce_logits": "BCEWithLogitsLoss",
}
FUNCTIONS = {
    "ce": "cross_entropy",
    "mse": "mse_loss",
    "l1": "l1_loss",
    "huber": "huber_loss",
    "smooth_l1": "smooth_l1_loss",
    "bce_logits": "binary_cross_entropy_with_logits",
}
_KINDS = (
    ("ce",) * 5 + ("mse",) * 3 + ("l1", "huber", "smooth_l1", "bce_logits", "bce_logits", "bce")
)


def draw_loss(r, model, entry):
    kind = r.choice(_KINDS)
    if kind == "bce" and model["kind"] == "MLP":
        kind = "bce_logits"
    loss = {"kind": kind, "form": r.choice(("module", "function", "partial")), "options": {}}
    options, classes = loss["options"], model["sizes"][-1]
    reductions = ("mean",) * 4 + ("sum",) * 2 + ("none",) * (entry == "loop" or r.random() < 0.1)
    options["reduction"] = r.choice(reductions)
    if kind == "ce":
        if r.random() < 0.25:
            options["weight"] = [0.1 + r.random() for _ in range(classes)]
        if r.random() < 0.2:
            options["label_smoothing"] = r.choice((0.0, 0.1, 0.5, 1.0))
        if r.random() < 0.2:
            options["ignore_index"] = r.randrange(classes)
        loss["target"] = r.choice(("int64",) * 6 + ("uint8", "int32", "probabilities", "beyond"))
    else:
        if kind == "huber" and r.random() < 0.5:
            options["delta"] = r.choice((0.3, 1.0, 2.5))
        if kind == "smooth_l1" and r.random() < 0.5:
            options["beta"] = r.choice((0.0, 0.3, 2.0))
        if kind == "bce_logits" and r.random() < 0.3:
            options["pos_weight"] = [0.5 + r.random() for _ in range(r.choice((1, classes)))]
        if kind == "bce_logits" and r.random() < 0.2:
            options["weight"] = [0.5 + r.random() for _ in range(classes)]
        usual = ("same",) * 9
        loss["target"] = r.choice((*usual, "squeezed", "integer", "float64", "grad", "spread"))
    if kind == "bce":
        if model["kind"] in ("functional", "mlp"):
            model["body"].pop()
        model["body"].append(("act", "sigmoid"))
    if loss["form"] == "function":
        for name in ("reduction", "weight", "pos_weight", "delta", "beta", "ignore_index"):
            options.pop(name, None)
        options.pop("label_smoothing", None)
    return loss


def build_loss(spec, own, dtype):
    """A callable (output, target); own: of mlp_ext, where it has that loss."""
    options = dict(spec["options"])
    for name in ("weight", "pos_weight"):
        if name in options:
            options[name] = torch.tensor(options[name], dtype=dtype)
    kind, form = spec["kind"], spec["form"]
    if kind == "bce":
        return nn.BCELoss(**options) if form == "module" else _function(F, kind, options)
    if form == "module":
        return getattr(mlp_ext.nn if own else nn, MODULES[kind])(**options)
    return _function(mlp_ext.functional if own else F, kind, options)


def _function(module, kind, options):
    name = "binary_cross_entropy" if kind == "bce" else FUNCTIONS[kind]
    function = getattr(module, name)
    return functools.partial(function, **options) if options else function


def make_target(spec, output_shape, dtype, generator):
    """Of the shape that the model's output has; the odd ones by spec["target"]."""
    kind, target = spec["kind"], spec["target"]
    if kind == "ce":
        # cross_entropy has the classes in the second dimension.
        classes = output_shape[1] if len(output_shape) > 1 else output_shape[0]
        shape = (*output_shape[:1], *output_shape[2:])
        if target == "probabilities":
            y = torch.rand(output_shape, generator=generator, dtype=torch.float64)
            return (y / y.sum(1, keepdim=True)).to(dtype)
        y = torch.randint(classes, shape, generator=generator)
        if target == "beyond" and y.numel():
            y.view(-1)[-1] = classes + 3
        return y.to({"uint8": torch.uint8, "int32": torch.int32}.get(target, torch.int64))
    make = torch.rand if kind in ("bce", "bce_logits") else torch.randn
    y = make(output_shape, generator=generator, dtype=torch.float64).to(dtype)
    if target == "squeezed":
        return y.squeeze(-1) if output_shape[-1] == 1 else y[..., :1]
    if target == "integer":
        return y.round().to(torch.int64)
    if target == "float64":
        return y.double()
    if target == "grad":
        return y.requires_grad_()
    return torch.stack((y, y), -1)[..., 0] if target == "spread" else y
