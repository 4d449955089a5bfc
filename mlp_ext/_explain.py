"""mlp_ext.explain: which Linear of a model runs fused, and why another does not."""

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils import parametrize

from . import nn
from ._explain_activations import LinearLike, activation_after, alone, join
from ._load import _C
from ._runs import CODES, HOOK_KINDS, run
from ._surroundings import LAYERS
from .functional import ACTIVATIONS

# Those that run in a stack, and LazyLinear, which becomes an nn.Linear at its first call.
LINEARS = (
    torch.nn.Linear,
    nn.Linear,
    nn.LinearActivation,
    nn.LinearReLU,
    torch.nn.LazyLinear,
)

_WITHOUT_EXPONENTIALS = ("relu", "leaky_relu")

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_module(model: Any, function: str) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"{function}() takes a torch.nn.Module, got {type(model).__name__}")


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
    check_module(model, "explain")
    reports = Explanation()
    if isinstance(model, LinearLike):
        reports.append(_report("", model, (), None))
    reports.extend(_below(model, "", ()))
    return reports


def _below(
    parent: torch.nn.Module, path: str, above: tuple[torch.nn.Module, ...]
) -> Iterator[LinearReport]:
    """The reports of every Linear below `parent`: shared ones at each place, cycles cut."""
    above = (*above, parent)
    stacks = _stacks(above, path)
    for name, child in parent._modules.items():
        if child is None or any(child is module for module in above):
            continue
        place = join(path, name)
        if isinstance(child, LinearLike):
            yield _report(place, child, above, stacks.get(name))
        yield from _below(child, place, above)


def _stacks(above: tuple[torch.nn.Module, ...], path: str) -> dict[str, tuple[bool, str]]:
    """Name of each Linear child that the last of `above` runs in a stack -> LinearReport.fused and
    .how.

    Asks the loop that forward runs, with recorders in the place of the calls.
    """
    parent = above[-1]
    if not isinstance(parent, nn.Sequential) or _why_one_by_one(above):
        return {}
    wrapper = "; by the forward set on its Sequential, which wraps that of the class"
    under = wrapper if "forward" in parent.__dict__ else ""
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
        last = [name for name, child in members if isinstance(child, LinearLike)][-1]
        for i, (name, child) in enumerate(members):
            if isinstance(child, LinearLike):
                partner = activation_after(members[i + 1 :], path)
                if isinstance(child, nn.LinearActivation) and child.activation is not None:
                    partner = f" with its own {child.activation}"
                rest = "" if partner or name != last else alone(children[position:], path)
                limit = _size_limit(weights, codes)
                fused = f"fused{partner} into {layers}{rest}{limit}{under}"
                how = f"left alone: {why}" if why else fused
                found[name] = not why, how

    def call(child: torch.nn.Module) -> None:
        nonlocal first
        first = position + 1

    run(watched(), None, stack, call)
    return found


def _report(
    path: str,
    linear: Any,
    above: tuple[torch.nn.Module, ...],
    stacked: tuple[bool, str] | None,
) -> LinearReport:
    if stacked:
        return LinearReport(path, *stacked)
    why = _why_not_in_a_stack(linear)
    if _runs_itself(linear):
        with_activation = f" with its own {linear.activation}" if linear.activation else ""
        limit = _size_limit(_tensors(linear), [CODES[linear.activation]])
        in_sequential = above and isinstance(above[-1], nn.Sequential)
        kept_out = f" (not in a stack: {why})" if why and in_sequential else ""
        return LinearReport(path, True, f"fused by itself{with_activation}{limit}{kept_out}")
    return LinearReport(path, False, f"left alone: {why or _why_not_called(linear, above)}")


def _runs_itself(linear: Any) -> bool:
    """Whether `linear`, called as a module, goes to our kernel by its own forward."""
    return (
        isinstance(linear, nn.Linear)
        and not _why_other_forward(linear, nn.Linear, nn.LinearActivation)
        and not _why_torch_kernel(_tensors(linear))
        and not _C.what_is_unusual(LAYERS)
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


def _why_other_forward(module: torch.nn.Module, *expected: type[torch.nn.Module]) -> str:
    """Why calling `module` does not end in the forward of `expected`; empty where it does."""
    if not any(type(module).forward is kind.forward for kind in expected):
        return f"{type(module).__name__} has a forward of its own, which cannot be looked into"
    if "forward" not in module.__dict__:
        return ""
    wrapped = _wrapped_by(module.__dict__["forward"])
    if wrapped is type(module).forward:
        return ""
    if wrapped is torch.nn.Sequential.forward and isinstance(module, nn.Sequential):
        return "a forward set on the instance wraps that of nn.Sequential: call fuse before"
    return "a forward of its own, set on the instance"


def _wrapped_by(forward: Any) -> Any:
    """The function that `forward` says it wraps in the end, or that it is.

    functools.wraps says so; Accelerate uses it for mixed precision and offloading.
    """
    with contextlib.suppress(ValueError):  # a circle
        forward = inspect.unwrap(forward)
    return getattr(forward, "__func__", forward)


def _is_compiled(module: torch.nn.Module) -> bool:
    is_wrapper = type(module).__module__ == "torch._dynamo.eval_frame"  # of torch.compile(model)
    return is_wrapper or module.__dict__.get("_compiled_call_impl") is not None


def _why_one_by_one(above: tuple[torch.nn.Module, ...]) -> str:
    """Why the last of `above`, an mlp_ext.nn.Sequential, calls all its children one by one.

    Empty where it looks for stacks.
    """
    if why := _why_other_forward(above[-1], nn.Sequential):
        return f"the Sequential around it: {why}"
    if any(_is_compiled(module) for module in above):
        return "torch.compile makes a graph of the Sequential around it"
    return _C.what_is_unusual(LAYERS)


def _why_not_in_a_stack(linear: Any) -> str:
    """What in `linear` itself keeps it out of any stack; empty if nothing does."""
    if isinstance(linear, torch.nn.LazyLinear):
        return "a LazyLinear before its first call"
    if parametrize.is_parametrized(linear):
        return f"parametrized {', '.join(linear.parametrizations)}"
    if type(linear) not in LINEARS:
        base = next((kind for kind in type(linear).__mro__ if kind in LINEARS), torch.nn.Linear)
        return f"{type(linear).__name__} is a subclass of {base.__name__}"
    for kind in HOOK_KINDS:
        for hook in getattr(linear, f"_{kind}_hooks").values():
            name = getattr(hook, "__name__", type(hook).__name__)
            return f"{kind.replace('_', ' ')} hook on the module ({name})"
    if linear._compiled_call_impl is not None:
        return "its own compile() was called"
    if "forward" in linear.__dict__:
        return "a forward of its own, set on the instance"
    for name in ("weight", "bias"):
        if name not in linear._parameters:
            return f"its {name} is not a parameter of the module"
    return _why_torch_kernel(_tensors(linear))


def _why_not_called(linear: Any, above: tuple[torch.nn.Module, ...]) -> str:
    """What around a Linear that could run in a stack keeps it from that."""
    if isinstance(linear, nn.Linear) and (unusual := _C.what_is_unusual(LAYERS)):
        return unusual
    # A list of modules calls none of them.
    lists = torch.nn.ModuleList | torch.nn.ModuleDict
    callers = [module for module in above if not isinstance(module, lists)]
    if callers and isinstance(callers[-1], nn.Sequential):
        return _why_one_by_one(tuple(callers))
    if callers and type(callers[-1]) is torch.nn.Sequential:
        return "it is in an nn.Sequential; mlp_ext.fuse(model) takes it"
    if callers and isinstance(callers[-1], torch.nn.Sequential):
        name = _name_of(callers[-1])
        return f"{name} is a subclass of nn.Sequential; derive it from mlp_ext's"
    if callers:
        return (
            f"{_name_of(callers[-1])} calls it in a forward of its own, not in that of an "
            "nn.Sequential, which mlp_ext.fuse(model) would take"
        )
    return "it is not in an nn.Sequential, which mlp_ext.fuse(model) would take"


def _name_of(module: torch.nn.Module) -> str:
    """The class, with its module if torch.nn has another of the name (PEFT's LoRA has a Linear)."""
    kind = type(module)
    known = getattr(torch.nn, kind.__name__, kind)
    return kind.__name__ if known is kind else f"{kind.__module__}.{kind.__name__}"
