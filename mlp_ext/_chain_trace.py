"""The graph of a forward of the user's own, by torch.fx, for the chain of a TrainStep."""

import contextlib
import itertools
import sys
from collections.abc import Iterator
from types import CodeType, FrameType, FunctionType
from typing import Any

import torch
from torch import fx, nn

from ._chain_tensors import refusal


class _Tracer(fx.Tracer):
    """Looks into the root alone: its children are found again by `_steps`."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return True

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        # A graph does not say in which context a call was made.
        if not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            if (function := _running_function()) is not None:
                raise RuntimeError(
                    f"it calls {function}, a torch.autograd.Function, whose backward is its own"
                )
            raise RuntimeError("it calls a layer under no_grad or autocast")
        return super().create_node(*args, **kwargs)


def _running_function() -> str | None:
    """Name of the torch.autograd.Function whose forward is running, which is without gradients."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        of = frame.f_locals.get("cls") if frame.f_code.co_name == "apply" else None
        if isinstance(of, type) and issubclass(of, torch.autograd.Function):
            return of.__name__
        frame = frame.f_back
    return None


def trace(module: nn.Module, path: str, training: bool) -> fx.Graph:
    """What the forward calls while the `training` flag of all modules in it is set so."""
    flags = [(child, child.training) for child in module.modules()]
    before = dict(module.__dict__)
    try:
        for child, _ in flags:
            child.training = training
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            graph = _Tracer().trace(module)
    except Exception as error:  # whatever the user's code raises on a Proxy
        what = f"{type(error).__name__}: {error}".partition("\n")[0]
        reason = f"the forward of {type(module).__name__} cannot be traced by torch.fx ({what})"
        raise refusal(path, reason) from error
    finally:
        for child, flag in flags:
            child.training = flag
        # The tracer's own: where it keeps tensors that the forward has made, for their nodes.
        after = {k: v for k, v in module.__dict__.items() if not k.startswith("_tensor_constant")}
        module.__dict__.clear()
        module.__dict__.update(before)
    if after.keys() != before.keys() or any(after[name] is not before[name] for name in before):
        raise refusal(path, "its forward sets attributes of the module")
    return graph


# What every module has: torch's own, `training` (of which no graph depends) and children among it.
_TORCHS = frozenset(vars(nn.Module()))


def attributes_read(module: nn.Module) -> list[str]:
    """The attributes of the module that its forward may read, or the functions that it calls by
    name: a graph does not say what its branches were decided by.

    By their code, which has both sides of a branch.
    """
    kind = type(module)
    names: set[str] = set()
    texts: set[str] = set()  # getattr(self, "flag", False): there or not
    seen: set[CodeType] = set()
    for function in _functions(kind.forward):
        _read(kind, function.__code__, function.__globals__, names, texts, seen)
    # Others are no attributes, unless one is made when it is asked for.
    makes = kind.__getattr__ is not nn.Module.__getattr__
    found = {name for name in names if makes or name in vars(module) or _is_plain(kind, name)}
    return sorted((found | texts) - _TORCHS)


def _is_plain(kind: type, name: str) -> bool:
    """Of a class, which an attribute of the instance would hide: no method or property."""
    there = [vars(each)[name] for each in kind.__mro__ if name in vars(each)]
    return bool(there) and not hasattr(there[0], "__get__")


def _read(
    kind: type,
    code: CodeType,
    around: dict[str, Any],
    names: set[str],
    texts: set[str],
    seen: set[CodeType],
) -> None:
    """around: the names of the module that the code stands in."""
    if code in seen:
        return
    seen.add(code)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _read(kind, constant, around, names, texts, seen)
        elif isinstance(constant, str) and constant.isidentifier():
            texts.add(constant)
    package = kind.__module__.partition(".")[0]
    for name in code.co_names:
        names.add(name)
        # Of every base, for super(); and of the package that the module's class is from.
        called = [vars(each)[name] for each in kind.__mro__ if name in vars(each)]
        found = around.get(name)
        if isinstance(found, FunctionType) and found.__module__.partition(".")[0] == package:
            called.append(found)
        for function in itertools.chain.from_iterable(map(_functions, called)):
            _read(kind, function.__code__, function.__globals__, names, texts, seen)


def _functions(found: Any) -> Iterator[FunctionType]:
    """A function of the user's own, and those that it wraps or holds."""
    if isinstance(found, property):
        found = found.fget
    found = getattr(found, "__func__", found)
    if not isinstance(found, FunctionType) or found.__module__.partition(".")[0] == "torch":
        return
    yield found
    for cell in found.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty one
            if isinstance(cell.cell_contents, FunctionType) and cell.cell_contents is not found:
                yield from _functions(cell.cell_contents)
