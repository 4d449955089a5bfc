"""What a recorded step (_graphed_step.py) depends on, and whether that is still as it was.

Neither more nor less: what is missed here trains another model than the user's, without a word;
what is too much (a `model.global_step = 7`) records again at every step.
"""

import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from . import nn as own_nn
from ._chain import Chain, structure_of
from ._load import _C
from ._runs import FORMS
from ._step_parts import loss_options, modules_of

# What a call of it reads, and what the chain of layers is read from.
_ATTRIBUTES: dict[type, tuple[str, ...]] = {
    nn.BatchNorm1d: ("training", "eps", "momentum", "track_running_stats", "num_features"),
    nn.LayerNorm: ("eps", "normalized_shape"),
    nn.Dropout: ("training", "p"),
    nn.Flatten: ("start_dim", "end_dim"),
    **{form.module: tuple(form.arguments) for form in FORMS.values()},
}
# Compared by value. All else, tensors above all, is the same object or another one.
_PLAIN = frozenset({bool, int, float, str, tuple})
_MISSING = object()


class Recorded:
    """Model and loss as they are now. RuntimeError where the memory of one of their tensors was
    freed (untyped_storage().resize_(0))."""

    def __init__(
        self, model: nn.Module, chain: Chain, loss_fn: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        layers = [layer.module for layer in chain.layers if layer.module is not None]
        dropouts = [layer.dropout for layer in chain.layers if layer.dropout is not None]
        self._types = [(module, type(module)) for module in modules_of(model, loss_fn)]
        # An unused child may have one.
        self._instances = [m.__dict__ for m, _ in self._types if "forward" not in m.__dict__]
        places: list[tuple[dict, str]] = []
        containers: list[dict] = []
        used = {id(module) for module in (*layers, *dropouts)}
        for module, kind in self._types:
            names = _ATTRIBUTES.get(kind, ())
            if id(module) in used or "training" not in names:
                places += [(module.__dict__, name) for name in names]
            if module._modules or not (kind in _ATTRIBUTES or id(module) in used):
                places.append((module.__dict__, "_modules"))
                containers.append(module._modules)
        for module in layers:
            names = ("_parameters", "_buffers")
            if isinstance(module, own_nn.Linear):
                names = (*names, "activation")
            places += [(module.__dict__, name) for name in names]
            containers += [module._parameters, module._buffers]
        structure, entries = structure_of(model)
        places += entries
        self._lists = [(held, [*held]) for held in structure if isinstance(held, list)]
        containers += [held[name] for held, name in entries if type(held.get(name)) is dict]
        held_by_loss, of_loss = loss_options(loss_fn)
        places += of_loss
        containers += held_by_loss
        self._values = [(held, name, held.get(name, _MISSING)) for held, name in places]
        tensors = [t for module in layers for t in (*module.parameters(), *module.buffers())]
        tensors += [value for _, _, value in self._values if isinstance(value, Tensor)]
        tensors += [t for held in held_by_loss for t in held.values() if isinstance(t, Tensor)]
        _C.refuse_freed(tensors)
        self._watch = _C.Watch(containers, tensors)

    def unchanged(self) -> bool:
        if not self._watch.unchanged():
            return False
        for module, kind in self._types:
            if type(module) is not kind:
                return False
        for attributes in self._instances:
            if "forward" in attributes:
                return False
        for items, before in self._lists:
            if len(items) != len(before) or any(map(operator.is_not, items, before)):
                return False
        for held, name, value in self._values:
            found = held.get(name, _MISSING)
            if found is not value and not _equal(found, value):
                return False
        return True


def _equal(found: Any, value: Any) -> bool:
    return type(found) is type(value) and type(found) in _PLAIN and bool(found == value)
