"""fuse, unfuse, explain: switch a whole model over, switch it back, and see what came of it.

`fuse` changes the class of containers and nothing else: modules, keys, hooks and flags stay. It
takes the nn.Sequential only. A Linear that a module calls in a forward of its own
(`F.relu(self.fc1(x))`) is left alone: its activation is a line of Python, and a graph recorded once
(torch.fx) would miss what that line does the next time: another branch, another hook, another
child. Such a layer becomes mlp_ext.nn.Linear(..., activation="relu") by hand.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.nn.modules import module as _torch_module
from torch.nn.utils import parametrize

from . import nn
from ._load import _C
from ._runs import CODES, HOOK_KINDS, run
from .functional import ACTIVATIONS

__all__ = ["Explanation", "LinearReport", "explain", "fuse", "unfuse"]

_Model = TypeVar("_Model", bound=torch.nn.Module)

# Those that run in a stack, and LazyLinear, which becomes an nn.Linear at its first call.
_LINEARS = (torch.nn.Linear, nn.Linear, nn.LinearReLU, torch.nn.LazyLinear)

# As they were at import; one patched in later is somebody else's.
_FORWARDS = {kind: kind.forward for kind in (torch.nn.Linear, nn.Linear, nn.Sequential)}

_WITHOUT_EXPONENTIALS = ("relu", "leaky_relu")

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _check_module(model: Any, function: str) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"{function}() takes a torch.nn.Module, got {type(model).__name__}")


def fuse(model: _Model) -> _Model:
    """Make every nn.Sequential of `model` that holds a Linear an mlp_ext.nn.Sequential, in place.

    Parameters, state_dict keys, hooks, indices and the modules themselves stay as they are, so
    optimizers and checkpoints go on; calling it again changes nothing. Subclasses of nn.Sequential
    keep their class, and with it their forward. What then runs fused is decided at each call (see
    mlp_ext.nn.Sequential) and told by `explain`.

    Args:
        model: any module, also an nn.Sequential itself.

    Returns:
        `model`.

    Raises:
        TypeError: if `model` is no module.
    """
    _check_module(model, "fuse")
    for module in model.modules():
        if type(module) is torch.nn.Sequential and any(type(c) in _LINEARS for c in module):
            module.__class__ = nn.Sequential
    return model


def unfuse(model: _Model) -> _Model:
    """Make every mlp_ext.nn.Sequential of `model` an nn.Sequential again, in place.

    Also those that were built as mlp_ext.nn.Sequential. An MLP and an mlp_ext.nn.Linear are classes
    that the user chose for what they do, and stay.

    Args:
        model: any module.

    Returns:
        `model`.

    Raises:
        TypeError: if `model` is no module.
    """
    _check_module(model, "unfuse")
    for module in model.modules():
        if type(module) is nn.Sequential:
            module.__class__ = torch.nn.Sequential
    return model


@dataclass(frozen=True)
class LinearReport:
    """What becomes of one Linear.

    Attributes:
        path: its place in the model, as in named_modules().
        fused: whether a call takes mlp_ext's kernels.
        how: with what it is fused, or why it is left alone.
    """

    path: str
    fused: bool
    how: str

    def __str__(self) -> str:
        return f"{self.path or '(the model)'}: {self.how}"


class Explanation(list[LinearReport]):
    """A list of LinearReport that prints as a table."""

    def __repr__(self) -> str:
        if not self:
            return "no Linear in the model"
        rows = [(r.path or "(the model)", "yes" if r.fused else "no", r.how) for r in self]
        width = max(len("Linear"), *(len(path) for path, _, _ in rows))
        lines = [("Linear", "fused", "how"), *rows]
        return "\n".join(f"{path:<{width}}  {fused:<5}  {how}" for path, fused, how in lines)


def explain(model: torch.nn.Module) -> Explanation:
    """Say of each Linear in `model` whether a call takes mlp_ext's kernels, and how or why not.

    It describes a call made now, in eager mode, with a dense CPU input of the weights' dtype, of
    the Sequential or the mlp_ext.nn.Linear in question; whether the model's own forward makes that
    call, it cannot know. Of a fully_shard model ask before sharding: its DTensors are left alone.

    Args:
        model: any module.

    Returns:
        A list of LinearReport, in the order of model.named_modules(), which prints as a table. A
        Linear that sits in two places is listed at both.

    Raises:
        TypeError: if `model` is no module.
    """
    _check_module(model, "explain")
    reports = Explanation()
    if isinstance(model, torch.nn.Linear):
        reports.append(_report("", model, None, None))
    reports.extend(_below(model, "", ()))
    return reports


def _below(
    parent: torch.nn.Module, path: str, above: tuple[torch.nn.Module, ...]
) -> Iterator[LinearReport]:
    """The reports of every Linear below `parent`: shared ones at each place, cycles cut."""
    above = (*above, parent)
    stacks = _stacks(parent, path)
    for name, child in parent._modules.items():
        if child is None or any(child is module for module in above):
            continue
        place = _join(path, name)
        if isinstance(child, torch.nn.Linear):
            yield _report(place, child, parent, stacks.get(name))
        yield from _below(child, place, above)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _stacks(parent: torch.nn.Module, path: str) -> dict[str, tuple[bool, str]]:
    """Name of each Linear child that `parent` runs in a stack -> LinearReport.fused and .how.

    Asks the loop that forward runs, with recorders in the place of the calls.
    """
    if not isinstance(parent, nn.Sequential) or _why_one_by_one(parent):
        return {}
    children = list(parent._modules.items())
    first = position = 0
    found: dict[str, tuple[bool, str]] = {}

    def watched() -> Iterator[torch.nn.Module]:
        nonlocal position
        for position, (_, child) in enumerate(children):  # noqa: B007
            yield child
        position = len(children)

    def stack(input: None, weights: list, biases: list, codes: list) -> None:
        members = children[first:position]
        why = _why_torch_kernel([*weights, *biases])
        layers = f"a stack of {len(codes)} layer{'s' if len(codes) > 1 else ''}"
        for i, (name, child) in enumerate(members):
            if isinstance(child, torch.nn.Linear):
                partner = _activation_after(members[i + 1 :], path)
                if isinstance(child, nn.Linear) and child.activation is not None:
                    partner = f" with its own {child.activation}"
                limit = _size_limit(weights, codes)
                how = f"left alone: {why}" if why else f"fused{partner} into {layers}{limit}"
                found[name] = not why, how

    def call(child: torch.nn.Module) -> None:
        nonlocal first
        first = position + 1

    run(watched(), None, stack, call)
    return found


def _activation_after(members: list[tuple[str, torch.nn.Module]], path: str) -> str:
    """' with 0.1 (ReLU)' for the activation that follows a Linear in its stack, if one does."""
    for name, child in members:
        if isinstance(child, torch.nn.Linear):
            break
        if not isinstance(child, torch.nn.Identity | torch.nn.Dropout):
            return f" with {_join(path, name)} ({type(child).__name__})"
    return ""


def _report(
    path: str,
    linear: torch.nn.Linear,
    parent: torch.nn.Module | None,
    stacked: tuple[bool, str] | None,
) -> LinearReport:
    if stacked:
        return LinearReport(path, *stacked)
    why = _why_not_in_a_stack(linear)
    if _runs_itself(linear):
        with_activation = f" with its own {linear.activation}" if linear.activation else ""
        limit = _size_limit(_tensors(linear), [CODES[getattr(linear, "activation", None)]])
        kept_out = f" (not in a stack: {why})" if why and isinstance(parent, nn.Sequential) else ""
        return LinearReport(path, True, f"fused by itself{with_activation}{limit}{kept_out}")
    return LinearReport(path, False, f"left alone: {why or _why_not_called(linear, parent)}")


def _runs_itself(linear: torch.nn.Linear) -> bool:
    """Whether `linear`, called as a module, goes to our kernel by its own forward."""
    return (
        isinstance(linear, nn.Linear)
        and not _why_other_forward(linear, nn.Linear)
        and not _why_torch_kernel(_tensors(linear))
    )


def _tensors(linear: torch.nn.Linear) -> list[torch.Tensor | None]:
    """What weight and bias are, or are computed from, without setting off that computation."""
    return [*linear.parameters(), linear.__dict__.get("weight"), linear.__dict__.get("bias")]


def _why_torch_kernel(parameters: list[torch.Tensor | None]) -> str:
    """Why functional hands a call with these parameters to PyTorch; empty where it does not."""
    for tensor in parameters:
        if tensor is None:
            continue
        if tensor.dtype not in _DTYPES or tensor.device.type not in _C.DEVICES:
            return f"PyTorch's own operators run {tensor.dtype} on {tensor.device.type}"
        if tensor.layout != torch.strided or tensor.numel() == 0:
            what = "empty" if tensor.numel() == 0 else str(tensor.layout)
            return f"PyTorch's own operators run {what} parameters"
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            return f"PyTorch's own operators run {type(tensor).__name__}, a subclass of Tensor"
    return ""


def _size_limit(parameters: list[torch.Tensor | None], codes: list[int]) -> str:
    """A remark where the kernels leave large calls to PyTorch (csrc/bindings/eligibility.cpp)."""
    dtype = next((p.dtype for p in parameters if p is not None and p.is_cpu), None)
    exponentials = any(ACTIVATIONS[c - 1] not in _WITHOUT_EXPONENTIALS for c in codes if c)
    if dtype in (torch.bfloat16, torch.float16) or (dtype == torch.float64 and exponentials):
        return f"; large calls may be left to PyTorch in {str(dtype).removeprefix('torch.')}"
    return ""


def _why_other_forward(module: torch.nn.Module, expected: type[torch.nn.Module]) -> str:
    """Why calling `module` does not end in the forward of `expected`; empty where it does."""
    if "forward" in module.__dict__:
        return "a forward of its own, set on the instance"
    if type(module).forward is not _FORWARDS[expected]:
        return f"{type(module).__name__} has a forward of its own, which cannot be looked into"
    return ""


def _why_one_by_one(sequential: torch.nn.Sequential) -> str:
    """Why `sequential` calls all its children one by one; empty where it looks for stacks."""
    if why := _why_other_forward(sequential, nn.Sequential):
        return f"the Sequential around it: {why}"
    if any(getattr(_torch_module, f"_global_{kind}_hooks") for kind in HOOK_KINDS):
        return "a hook for all modules is registered (torch.nn.modules.module)"
    if torch.nn.Module.__call__ is not nn._module_call:
        return "torch.nn.Module.__call__ is patched"
    return ""


def _why_not_in_a_stack(linear: torch.nn.Linear) -> str:
    """What in `linear` itself keeps it out of any stack; empty if nothing does."""
    if isinstance(linear, torch.nn.LazyLinear):
        return "a LazyLinear before its first call"
    if parametrize.is_parametrized(linear):
        return f"parametrized {', '.join(linear.parametrizations)}"
    if type(linear) not in _LINEARS:
        return f"{type(linear).__name__} is a subclass of Linear"
    for kind in HOOK_KINDS:
        for hook in getattr(linear, f"_{kind}_hooks").values():
            name = getattr(hook, "__name__", type(hook).__name__)
            return f"{kind.replace('_', ' ')} hook on the module ({name})"
    if linear._compiled_call_impl is not None:
        return "its own compile() was called"
    own = nn.Linear if isinstance(linear, nn.Linear) else torch.nn.Linear
    if why := _why_other_forward(linear, own):
        return why
    for name in ("weight", "bias"):
        if name not in linear._parameters:
            return f"its {name} is not a parameter of the module"
    return _why_torch_kernel(_tensors(linear))


def _why_not_called(linear: torch.nn.Linear, parent: torch.nn.Module | None) -> str:
    """What around a Linear that could run in a stack keeps it from that."""
    advice = 'use mlp_ext.nn.Linear(..., activation="relu") or another activation'
    if parent is None:
        return f"it is not in an nn.Sequential; {advice}"
    if isinstance(parent, nn.Sequential):
        return _why_one_by_one(parent)
    if type(parent) is torch.nn.Sequential:
        return "it is in an nn.Sequential; mlp_ext.fuse(model) takes it"
    if isinstance(parent, torch.nn.Sequential):
        return f"{type(parent).__name__} is a subclass of nn.Sequential; derive it from mlp_ext's"
    return f"{type(parent).__name__} calls it in a forward of its own; {advice}"
