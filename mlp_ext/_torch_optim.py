"""torch.optim's classes, as those of ours build on them: constructor, making of states, own step."""

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from ._load import _C


def _unwrapped(function: Any) -> Any:
    """Without what torch.compile puts around `_init_group` of every class of torch.optim when it
    first runs."""
    while hasattr(function, "_torchdynamo_orig_callable"):
        function = function._torchdynamo_orig_callable
    return function


# Of each class, how many lists its _init_group fills for its step.
_LISTS = {
    kind: len(inspect.signature(_unwrapped(kind._init_group)).parameters) - 2  # self, group
    for kind in vars(torch.optim).values()
    if inspect.isclass(kind) and hasattr(kind, "_init_group")
}


@dataclasses.dataclass(slots=True)
class Rule:
    """What one of our classes is made of."""

    step: Callable[..., int]  # the compiled one
    torch_class: type[Optimizer]
    init_group: Any = None  # torch's, or what torch.compile has put around it

    def __post_init__(self) -> None:
        self.init_group = self.torch_class._init_group

    def has_torchs_init_group(self, optimizer: Optimizer) -> bool:
        """Whether states are made, and gradients handed on, as torch's class does it: not by an
        override in a subclass, on the instance, or in torch's class."""
        found = getattr(optimizer._init_group, "__func__", None)
        if found is self.init_group:
            return True
        if found is None or _unwrapped(found) is not _unwrapped(self.init_group):
            return False
        self.init_group = found
        return True

    def torchs_step(self) -> Callable[..., Any]:
        """torch's step without the wrapper (profiler record and hooks) that the first instance of
        the class puts around it: our own step has done that part."""
        step = self.torch_class.step
        return step.__wrapped__ if getattr(step, "hooked", False) else step


def init_group(optimizer: Optimizer, group: dict) -> None:
    """Creates the state of the group's parameters that have a gradient and no state: torch's own
    function, without the lists that it fills for torch's step."""
    # By the class and not the signature: an override may take *lists.
    lists = next(_LISTS[kind] for kind in type(optimizer).__mro__ if kind in _LISTS)
    optimizer._init_group(group, *([] for _ in range(lists)))


def refuse_freed(optimizer: Optimizer, with_state: bool = True) -> None:
    """RuntimeError for a gradient, or a parameter or state that has one, or an option, whose memory
    is gone: torch's functions would go to where it was. Looks into no container that it could use
    up."""
    tensors: list[Any] = []
    for group in optimizer.param_groups:
        tensors += [option for option in group.values() if isinstance(option, Tensor)]
        for p in group["params"] if isinstance(group["params"], Collection) else ():
            if not isinstance(p, Tensor) or p.grad is None:
                continue
            tensors.append(p.grad)
            if with_state:
                state = optimizer.state.get(p) if isinstance(optimizer.state, Mapping) else None
                tensors += [p, *(state.values() if isinstance(state, Mapping) else ())]
    _C.refuse_freed(tensors)


def constructor(base: type, torch_class: type[Optimizer]) -> Callable[..., None]:
    """base's __init__ with the signature and annotations of torch's and our option after them, for
    tools that make options of a constructor's parameters.

    Taken from the torch that is installed: releases differ in their parameters, and a copy of them
    here would refuse those that a later release adds.
    """
    theirs: Any = torch_class.__init__
    ours = inspect.signature(base.__init__).parameters["master_weights"]  # type: ignore[misc]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, *args, **kwargs)  # type: ignore[misc]

    signature = inspect.signature(theirs)
    made: Any = __init__
    made.__signature__ = signature.replace(parameters=[*signature.parameters.values(), ours])
    hints = dict(inspect.get_annotations(theirs))
    returned = hints.pop("return", None)
    made.__annotations__ = {**hints, ours.name: ours.annotation, "return": returned}
    return made
