"""Tells the compiled half what it stands in for, to watch it (csrc/bindings/surroundings.h).

`_C.as_usual(parts)` then says, at each call, whether all of that is torch's own and nobody listens:
if not, a fused module does what its children would, one by one. `_C.what_is_unusual(parts)` says
what is in the way.
"""

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as _torch_module
from torch.utils._device import DeviceContext

from ._load import _C

as_usual: Callable[..., bool] = _C.as_usual
LAYERS: int = _C.PART_LAYERS
LOSSES: int = _C.PART_LOSSES

# What the modules that are stood in for look up when they are called, and what these functions
# look up in turn.
_FUNCTIONS = {
    (LAYERS, F): "linear relu gelu silu leaky_relu elu softplus dropout batch_norm layer_norm",
    (LAYERS, torch): "relu relu_ tanh sigmoid batch_norm layer_norm",
    (LAYERS, torch._C._nn): "silu silu_ leaky_relu leaky_relu_ elu elu_",
    (LOSSES, F): (
        "cross_entropy mse_loss l1_loss huber_loss smooth_l1_loss binary_cross_entropy "
        "binary_cross_entropy_with_logits"
    ),
    (LOSSES, torch): "binary_cross_entropy_with_logits",
    (LOSSES, torch._C._nn): (
        "cross_entropy_loss mse_loss l1_loss huber_loss smooth_l1_loss binary_cross_entropy"
    ),
}
_LAYER_CLASSES = (
    nn.Sequential,
    nn.Linear,
    nn.ReLU,
    nn.GELU,
    nn.SiLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.LeakyReLU,
    nn.ELU,
    nn.Softplus,
    nn.Dropout,
    nn.Identity,
    nn.BatchNorm1d,
    nn.LayerNorm,
    nn.Flatten,
)
_LOSS_CLASSES = (
    nn.CrossEntropyLoss,
    nn.MSELoss,
    nn.L1Loss,
    nn.HuberLoss,
    nn.SmoothL1Loss,
    nn.BCEWithLogitsLoss,
    nn.BCELoss,
)

# The way from `module(input)` to its forward, and from `self.weight` to a parameter.
_CALL = ("__call__", "_wrapped_call_impl", "_call_impl", "__getattr__")


def watch_class(part: int, kind: type[nn.Module], home: str | None = None) -> None:
    """Watch the way into the forward of `kind` and to its parameters, and that forward, which the
    module `home` defines.

    None for home: the module that the class names as its own.
    """
    for name in _CALL:
        _C.watch(part, kind, name, _torch_module)
    _C.watch(part, kind, "forward", sys.modules[home or kind.__module__])


for _name in _CALL:  # first: it is the better name for what all classes inherit
    _C.watch(LAYERS | LOSSES, nn.Module, _name, _torch_module)
for _kind in ("forward", "forward_pre", "backward", "backward_pre"):
    _C.watch_hooks(_torch_module, f"_global_{_kind}_hooks")
for (_part, _module), _names in _FUNCTIONS.items():
    for _name in _names.split():
        if hasattr(_module, _name):  # not every torch looks up the same
            _C.watch(_part, _module, _name, _module)
for _class in _LAYER_CLASSES:
    watch_class(LAYERS, _class)
for _class in _LOSS_CLASSES:
    watch_class(LOSSES, _class)
_C.allow_mode(DeviceContext)
