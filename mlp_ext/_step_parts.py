"""The loss and the optimizer of a TrainStep, as the compiled half takes them."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import optimizer as _torch_optimizer

from . import functional, optim
from . import nn as own_nn
from ._chain import Chain
from ._load import _C
from ._runs import HOOK_KINDS

_CLASSES: dict[type, str] = {
    nn.CrossEntropyLoss: "cross_entropy",
    own_nn.CrossEntropyLoss: "cross_entropy",
    nn.MSELoss: "mse",
    own_nn.MSELoss: "mse",
    nn.L1Loss: "l1",
    own_nn.L1Loss: "l1",
    nn.HuberLoss: "huber",
    own_nn.HuberLoss: "huber",
    nn.SmoothL1Loss: "smooth_l1",
    own_nn.SmoothL1Loss: "smooth_l1",
    nn.BCEWithLogitsLoss: "bce_with_logits",
    own_nn.BCEWithLogitsLoss: "bce_with_logits",
    nn.BCELoss: "bce",
}
_FUNCTIONS: dict[Callable, str] = {
    F.cross_entropy: "cross_entropy",
    functional.cross_entropy: "cross_entropy",
    F.mse_loss: "mse",
    functional.mse_loss: "mse",
    F.l1_loss: "l1",
    functional.l1_loss: "l1",
    F.huber_loss: "huber",
    functional.huber_loss: "huber",
    F.smooth_l1_loss: "smooth_l1",
    functional.smooth_l1_loss: "smooth_l1",
    F.binary_cross_entropy_with_logits: "bce_with_logits",
    functional.binary_cross_entropy_with_logits: "bce_with_logits",
    F.binary_cross_entropy: "bce",
}
# Of LossSpec's numbers: what torch's losses take.
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "label_smoothing": ("between 0 and 1", lambda value: 0 <= value <= 1),
    "delta": ("positive", lambda value: value > 0),
    "beta": ("0 or positive", lambda value: value >= 0),
}
# The options of each, and the name under which LossSpec has them.
_OPTIONS = {
    "cross_entropy": {
        "weight": "weight",
        "ignore_index": "ignore_index",
        "label_smoothing": "label_smoothing",
    },
    "mse": {"weight": "weight"},
    "l1": {"weight": "weight"},
    "huber": {"weight": "weight", "delta": "parameter"},
    "smooth_l1": {"beta": "parameter"},
    "bce_with_logits": {"weight": "weight", "pos_weight": "pos_weight"},
    "bce": {"weight": "weight"},
}
# Class -> the name of its rule in csrc/bindings/optimizer_rules.cpp.
_RULES: dict[type, str] = {
    getattr(module, name): "adam" if name == "AdamW" else name.lower()
    for module in (torch.optim, optim)
    for name in optim.__all__
}


def loss_spec(loss_fn: Any) -> Any:
    """What the compiled half knows about the loss; ValueError for one that it does not take."""
    if isinstance(loss_fn, nn.Module):
        kind = _CLASSES.get(type(loss_fn))
        given = {**loss_fn.__dict__, **loss_fn._buffers, **loss_fn._parameters}
        if any(_hooks_of(loss_fn)) or "forward" in given:
            raise ValueError("TrainStep: the loss has a hook, or a forward set on the instance")
    else:
        function: Any = loss_fn
        given = {}
        while isinstance(function, functools.partial) and not function.args:
            function, given = function.func, {**function.keywords, **given}
        kind = _FUNCTIONS.get(function) if callable(function) else None
        if kind and set(given) - set(_OPTIONS[kind]) - {"reduction"}:
            kind = None
    if kind is None:
        names = ", ".join(sorted({*_CLASSES.values()}))
        raise ValueError(f"TrainStep does not know the loss {loss_fn!r}; it takes {names}")
    reduction = given.get("reduction", "mean")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"TrainStep takes a loss of reduction 'mean' or 'sum', got {reduction!r}")
    spec = _C.LossSpec()
    spec.kind, spec.mean, spec.parameter = kind, reduction == "mean", 1.0
    spec.on_host = functools.partial(_loss_and_gradient, loss_fn)
    for option, name in _OPTIONS[kind].items():
        value = given.get(option)
        if value is None:
            continue
        expected, fits = _RANGES.get(option, ("", lambda value: True))
        if not fits(value):
            raise ValueError(f"TrainStep: the loss's {option} must be {expected}, got {value}")
        setattr(spec, name, value)
    if kind == "smooth_l1" and spec.parameter == 0:
        spec.kind = "l1"
    return spec


def _loss_and_gradient(
    loss_fn: Callable[[Tensor, Tensor], Tensor], output: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss of targets that have no compiled form, by PyTorch's autograd."""
    output.requires_grad_()
    loss = loss_fn(output, target)
    (grad,) = torch.autograd.grad(loss, output)
    return loss.detach(), grad


def loss_call(loss_fn: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss that loss_spec takes, by our op where there is one."""
    given: dict[str, Any] = {}
    if isinstance(loss_fn, nn.Module):
        kind = _CLASSES[type(loss_fn)]
        # Not all: torch's MSELoss, say, has no weight, which F.mse_loss takes.
        names = [name for name in loss_attributes(loss_fn) if hasattr(loss_fn, name)]
        given = {name: getattr(loss_fn, name) for name in names}
    else:
        function: Any = loss_fn
        while isinstance(function, functools.partial):
            function, given = function.func, {**function.keywords, **given}
        kind = _FUNCTIONS[function]
    name = {"bce_with_logits": "binary_cross_entropy_with_logits"}.get(kind, kind + "_loss")
    if kind == "cross_entropy":
        name = kind
    chosen = F.binary_cross_entropy if kind == "bce" else getattr(functional, name)
    return functools.partial(chosen, **given)


def loss_attributes(loss_fn: nn.Module) -> tuple[str, ...]:
    """The names of the options of a loss that loss_spec takes."""
    return (*_OPTIONS[_CLASSES[type(loss_fn)]], "reduction")


def rule_of(optimizer: Optimizer, chain: Chain) -> str:
    rule = _RULES.get(type(optimizer))
    if rule is None:
        names = ", ".join(sorted({kind.__name__ for kind in _RULES}))
        raise ValueError(f"TrainStep takes {names}, got {type(optimizer).__name__}")
    # On CUDA the optimizer takes its step itself.
    for group in optimizer.param_groups if chain.device.type == "cpu" else ():
        for flag in ("differentiable", "capturable"):
            if group.get(flag):
                raise ValueError(f"TrainStep does not take optimizers with {flag}=True")
    # Others may be there too (those of a head that was replaced): the loop gives them no gradient.
    of_layers = {id(p) for layer in chain.layers for p in layer.parameters() if p.requires_grad}
    if not any(id(p) in of_layers for g in optimizer.param_groups for p in g["params"]):
        raise ValueError(
            "TrainStep: the optimizer has no parameter of the model's layers that requires a "
            "gradient"
        )
    all_params = [id(p) for group in optimizer.param_groups for p in group["params"]]
    if len(set(all_params)) < len(all_params):
        raise ValueError("TrainStep: the optimizer has a parameter twice")
    if any(_step_hooks_of(optimizer)):
        raise ValueError("TrainStep: a step hook is registered on the optimizer")
    for name in ("step", "zero_grad"):
        if not _is_own_method(optimizer, name):
            raise ValueError(
                f"TrainStep: the optimizer's {name} is patched, and would not be called"
            )
    return rule


def _is_own_method(optimizer: Optimizer, name: str) -> bool:
    """Whether optimizer.name() runs torch's code and ours alone. torch has wrappers of its own
    around it, which change nothing: for hooks, and for the order of learning rate schedulers."""
    for function in (getattr(type(optimizer), name), optimizer.__dict__.get(name)):
        function = getattr(function, "__func__", function)
        while function is not None:
            module = getattr(function, "__globals__", {}).get("__name__", "")
            if module.partition(".")[0] not in ("torch", __package__):
                return False
            function = getattr(function, "__wrapped__", None)
    return True


def _hooks_of(module: nn.Module) -> list[dict]:
    return [getattr(module, f"_{kind}_hooks") for kind in HOOK_KINDS]


def _step_hooks_of(optimizer: Optimizer) -> list[dict]:
    return [
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        _torch_optimizer._global_optimizer_pre_hooks,
        _torch_optimizer._global_optimizer_post_hooks,
    ]


def loss_options(loss_fn: Any) -> tuple[list[dict], list[tuple[dict, str]]]:
    """Where a changed option of the loss would appear: dictionaries, and entries of others."""
    if isinstance(loss_fn, nn.Module):
        names = ("forward", "_buffers", "_parameters", *loss_attributes(loss_fn))
        entries = [(loss_fn.__dict__, name) for name in names]
        return [loss_fn._buffers, loss_fn._parameters], entries
    held = []
    while isinstance(loss_fn, functools.partial):
        held += [loss_fn.__dict__, loss_fn.keywords]
        loss_fn = loss_fn.func
    return held, []


def modules_of(model: nn.Module, loss_fn: Any) -> list[nn.Module]:
    return [*model.modules(), *([loss_fn] if isinstance(loss_fn, nn.Module) else [])]


def hook_dicts(model: nn.Module, optimizer: Optimizer, loss_fn: Any) -> list[dict]:
    """The dictionaries in which a hook registered later would appear; one for all modules is seen
    by _C.as_usual."""
    of_each = [hooks for module in modules_of(model, loss_fn) for hooks in _hooks_of(module)]
    return [*of_each, *_step_hooks_of(optimizer)]


def put_back_gradient(parameter: Tensor, grad: Tensor | None) -> None:
    """What stood in .grad before. One that no longer fits, as its parameter got data of another
    shape since, cannot be set again: then nothing, as after the loop's zero_grad()."""
    parameter.grad = None
    with contextlib.suppress(RuntimeError):
        parameter.grad = grad


def initialize_state(optimizer: Optimizer) -> None:
    """The state of each parameter that has none, made by torch's own function, which takes
    parameters with a gradient: they have one meanwhile."""
    for group in optimizer.param_groups:
        chosen = [p for p in group["params"] if p.requires_grad]
        kept = [p.grad for p in chosen]
        try:
            for p in chosen:
                p.grad = p.detach()
            optim.init_group(optimizer, {**group, "params": chosen})
        except KeyError:  # of a state that is incomplete, as the next call says
            if not hasattr(optimizer.state, "__missing__"):
                raise  # a plain dict: as torch's own step
        finally:
            for p, grad in zip(chosen, kept, strict=True):
                put_back_gradient(p, grad)
