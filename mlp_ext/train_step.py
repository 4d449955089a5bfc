"""TrainStep: forward, loss, backward and update of one batch in a single compiled call."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as _torch_module
from torch.optim import Optimizer
from torch.optim import optimizer as _torch_optimizer

from . import functional, optim
from . import nn as own_nn
from ._chain import Chain, chain_of, refusal
from ._load import _C
from ._runs import CODES, HOOK_KINDS

__all__ = ["TrainStep"]

_CLASSES: dict[type, str] = {
    nn.CrossEntropyLoss: "cross_entropy",
    own_nn.CrossEntropyLoss: "cross_entropy",
    nn.MSELoss: "mse",
    nn.L1Loss: "l1",
    nn.HuberLoss: "huber",
    nn.SmoothL1Loss: "smooth_l1",
    nn.BCEWithLogitsLoss: "bce_with_logits",
    nn.BCELoss: "bce",
}
_FUNCTIONS: dict[Callable, str] = {
    F.cross_entropy: "cross_entropy",
    functional.cross_entropy: "cross_entropy",
    F.mse_loss: "mse",
    F.l1_loss: "l1",
    F.huber_loss: "huber",
    F.smooth_l1_loss: "smooth_l1",
    F.binary_cross_entropy_with_logits: "bce_with_logits",
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


class TrainStep:
    """A training step of `model` as one call: `loss = step(x, y)`.

    The same as

        loss = loss_fn(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip_grad_norm)  # unless None
        optimizer.step()

    on the model's own parameters and the optimizer's own state, without an autograd graph. Both
    may be used in any way between two calls: evaluated, saved, loaded, scheduled; learning rates
    and the other options are read from `optimizer.param_groups` at each call, and Dropout follows
    the `training` flag of its module. `.grad` is neither read nor written, unless keep_grad is set.
    Dropout draws from PyTorch's default generator, another stream than nn.Dropout's. Which layers
    the model has, and the options of the loss, are read at construction: after a change of these,
    make another TrainStep.

    model: nn.Linear (or mlp_ext.nn.Linear), the activations of mlp_ext.functional.ACTIVATIONS,
        Dropout, Identity and a first Flatten, in nn.Sequential or in a module whose forward is a
        chain of them; parameters float32 or float64 on the CPU, frozen ones included.
    loss_fn: cross_entropy (class indices), mse_loss, l1_loss, huber_loss, smooth_l1_loss,
        binary_cross_entropy_with_logits, or binary_cross_entropy behind a final sigmoid: the
        module, the function, or a functools.partial of it; reduction "mean" or "sum".
    optimizer: one of mlp_ext.optim's classes, or torch.optim's class of that name.
    clip_grad_norm: the largest 2-norm of all gradients together; None for no clipping.

    ValueError at construction, with the submodule's path and the reason, for what cannot be run
    faithfully.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        optimizer: Optimizer,
        *,
        clip_grad_norm: float | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"TrainStep takes a torch.nn.Module, got {type(model).__name__}")
        if clip_grad_norm is not None and not clip_grad_norm > 0:
            raise ValueError(f"clip_grad_norm is a positive number or None, got {clip_grad_norm}")
        chain = chain_of(model)
        spec = _loss_spec(loss_fn)
        if spec.kind == "bce" and chain.layers[-1].code != CODES["sigmoid"]:
            raise refusal("", "binary_cross_entropy takes the output of a final sigmoid")
        rule = _rule_of(optimizer, chain)
        self.model, self.loss_fn, self.optimizer = model, loss_fn, optimizer
        self.clip_grad_norm = clip_grad_norm
        self._flattens = chain.flattens
        self._initialization = threading.Lock()
        layers = [
            _C.LayerSpec(layer.linear._parameters, layer.code, layer.dropout)
            for layer in chain.layers
        ]
        self._step = _C.TrainStepCore(
            layers,
            spec,
            optimizer,
            rule,
            float(clip_grad_norm or 0),
            _watched(model, optimizer, loss_fn),
        )

    def __call__(self, x: Tensor, y: Tensor, *, keep_grad: bool = False) -> Tensor:
        """One step on the batch x (batch, in_features), y; returns the loss, 0-dim and detached.

        y: class indices int64 (batch,) for cross_entropy, else of the output's shape and dtype.
        keep_grad: leave the (clipped) gradients in `.grad`.

        Raises what PyTorch raises for a shape, dtype or class index that does not fit; nothing has
        then changed. RuntimeError if a hook was registered on the model since construction.
        """
        if self._flattens:
            x = x.flatten(1)
        loss = self._step(x, y, keep_grad)
        if loss is None:
            with self._initialization:
                self._initialize_state()
            loss = self._step(x, y, keep_grad)
            if loss is None:
                raise RuntimeError(
                    "TrainStep: a state of the optimizer is incomplete, or no tensor"
                )
        # An LR scheduler warns if no step was taken before it, and looks here.
        self.optimizer._opt_called = True
        return loss

    def epoch(self, loader: Iterable[Any]) -> float:
        """One step for each (x, y) of `loader`; returns the mean of the losses (NaN for none)."""
        losses = [self(x, y) for x, y in loader]
        return torch.stack(losses).mean().item() if losses else float("nan")

    def _initialize_state(self) -> None:
        """The state of each parameter that has none, made by torch's own function, which takes
        parameters with a gradient: they have one meanwhile."""
        for group in self.optimizer.param_groups:
            chosen = [p for p in group["params"] if p.requires_grad]
            kept = [p.grad for p in chosen]
            try:
                for p in chosen:
                    p.grad = p.detach()
                with contextlib.suppress(KeyError):  # incomplete: the next call says so
                    optim.init_group(self.optimizer, {**group, "params": chosen})
            finally:
                for p, grad in zip(chosen, kept, strict=True):
                    p.grad = grad


def _loss_spec(loss_fn: Any) -> Any:
    """What the compiled half knows about the loss; ValueError for one that it does not take."""
    if isinstance(loss_fn, nn.Module):
        kind = _CLASSES.get(type(loss_fn))
        given = {**loss_fn.__dict__, **loss_fn._buffers}
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


def _rule_of(optimizer: Optimizer, chain: Chain) -> str:
    rule = _RULES.get(type(optimizer))
    if rule is None:
        names = ", ".join(sorted({kind.__name__ for kind in _RULES}))
        raise ValueError(f"TrainStep takes {names}, got {type(optimizer).__name__}")
    for group in optimizer.param_groups:
        for flag in ("differentiable", "capturable"):
            if group.get(flag):
                raise ValueError(f"TrainStep does not take optimizers with {flag}=True")
        for name, value in group.items():
            values = value if isinstance(value, tuple) else (value,)
            if name != "params" and any(isinstance(v, Tensor) for v in values):
                raise ValueError(f"TrainStep does not take optimizers whose {name} is a tensor")
    of_layers = {id(p) for layer in chain.layers for p in layer.linear.parameters()}
    strangers = [p for g in optimizer.param_groups for p in g["params"] if id(p) not in of_layers]
    if strangers:
        raise ValueError(
            f"TrainStep: the optimizer has {len(strangers)} parameters that are not of the model's "
            f"layers, the first of shape {tuple(strangers[0].shape)}"
        )
    if not any(p.requires_grad for g in optimizer.param_groups for p in g["params"]):
        raise ValueError("TrainStep: the optimizer has no parameter that requires a gradient")
    all_params = [id(p) for group in optimizer.param_groups for p in group["params"]]
    if len(set(all_params)) < len(all_params):
        raise ValueError("TrainStep: the optimizer has a parameter twice")
    if any(_step_hooks_of(optimizer)):
        raise ValueError("TrainStep: a step hook is registered on the optimizer")
    return rule


def _hooks_of(module: nn.Module) -> list[dict]:
    return [getattr(module, f"_{kind}_hooks") for kind in HOOK_KINDS]


def _step_hooks_of(optimizer: Optimizer) -> list[dict]:
    return [
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        _torch_optimizer._global_optimizer_pre_hooks,
        _torch_optimizer._global_optimizer_post_hooks,
    ]


def _watched(model: nn.Module, optimizer: Optimizer, loss_fn: Any) -> list[dict]:
    """The dictionaries in which a hook registered later would appear."""
    modules = [*model.modules(), *([loss_fn] if isinstance(loss_fn, nn.Module) else [])]
    of_all = [getattr(_torch_module, f"_global_{kind}_hooks") for kind in HOOK_KINDS]
    of_each = [hooks for module in modules for hooks in _hooks_of(module)]
    return [*of_each, *of_all, *_step_hooks_of(optimizer)]
