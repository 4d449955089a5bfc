"""Ours on the device against float64 on the CPU, each case twice: the bits must be the same."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .budget import Budget
from .figures import Figure
from .ops import DTYPES, Op, Shape, ops

# A relative error that always passes: PyTorch may be exact by luck, and one cancelling sum is the
# whole of some results.
FLOOR = {torch.float32: 64, torch.float64: 4096, torch.bfloat16: 8, torch.float16: 8}  # x eps


@dataclass(frozen=True)
class Check:
    """Errors are the largest of all results, relative to that result's largest element."""

    name: str
    error: float
    torch_error: float
    same_bits: bool
    note: str = ""
    passed: bool = True


def _results(function, op: Op, tensors: Sequence, seed: int) -> list[Tensor]:
    """What the op gives, and its gradients, on the CPU."""
    leaves = [
        t
        if t is None or not t.is_floating_point()
        else t.detach().requires_grad_(op.differentiable)
        for t in tensors
    ]
    out = function(*leaves)
    made = list(out) if isinstance(out, (list, tuple)) else [out]
    if op.differentiable:
        wanted = [t for t in leaves if t is not None and t.requires_grad]
        generator = torch.Generator().manual_seed(seed)
        dy = torch.randn(out.shape, generator=generator, dtype=torch.float64)
        if op.smooth is not None:
            dy *= op.smooth
        # Rounded first, so that the float64 reference gets the same one in every dtype.
        dy = dy.bfloat16().to(out.device, out.dtype)
        grads = torch.autograd.grad(out, wanted, dy, allow_unused=True)
        made += [g for g in grads if g is not None]
    return [t.detach().cpu() for t in made]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape:
        return math.inf
    if not expected.numel():
        return 0.0
    scale = expected.abs().max().item()
    difference = (actual.double() - expected).abs().max().item()
    return math.inf if math.isnan(difference) else difference / scale if scale else difference


def check(op: Op, device, label: str = "") -> Check:
    name = f"{op.name} {label}".strip()
    dtype = op.tensors[0].dtype

    def on(target, dtype=None):
        moved = []
        for t in op.tensors:
            if t is not None:
                # .to() alone would make a strided tensor dense.
                t = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=target).copy_(t)
                t = t.to(dtype) if dtype and t.is_floating_point() else t
            moved.append(t)
        return moved

    try:
        first, second = (_results(op.ours, op, on(device.torch), 1) for _ in range(2))
        theirs = _results(op.theirs, op, on(device.torch), 1)
        exact = _results(op.theirs, op, on("cpu", torch.float64), 1)
    except Exception as error:  # the others are still checked
        reason = str(error).strip().partition("\n")[0]
        return Check(name, math.inf, math.inf, False, f"{type(error).__name__}: {reason}", False)
    pairs = zip(first, theirs, exact, strict=True)
    errors = [(relative_error(a, e), relative_error(b, e)) for a, b, e in pairs]
    floor = FLOOR[dtype] * torch.finfo(dtype).eps
    worst, torchs = max(errors, key=lambda pair: pair[0] / max(2 * pair[1], floor))
    same_bits = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    near = worst <= max(2 * torchs, floor)
    note = "" if near and same_bits else "differs from run to run" if near else "wrong"
    return Check(name, worst, torchs, same_bits, note, near and same_bits)


def label_of(shape: Shape, dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')} M{shape[0]} N{shape[1]} K{shape[2]}"


def checked(device, shapes: Iterable[Shape], budget: Budget, dtypes=DTYPES) -> list[Check]:
    made = []
    for shape in shapes:
        for dtype in dtypes:
            label = label_of(shape, dtype)
            if budget.has_time_for(f"correctness {label}"):
                made += [check(op, device, label) for op in ops(shape, dtype)]
    return made


def float32_error(device, shapes: Iterable[Shape]) -> Figure:
    """Root mean square error of our float32 product over cuBLAS SGEMM's (float32 precision
    "highest"), the largest over the shapes."""
    import mlp_ext

    from .precision import matmul_precision

    ratios = []
    for m, n, k in shapes:
        generator = torch.Generator().manual_seed(m + n + k)
        x, w = (torch.randn(*s, generator=generator) for s in ((m, k), (n, k)))
        exact = x.double() @ w.double().t()
        on_device = [t.to(device.torch) for t in (x, w)]
        with matmul_precision("highest"):
            pair = (f(*on_device) for f in (mlp_ext.functional.linear, torch.nn.functional.linear))
            ours, theirs = ((y.cpu().double() - exact).square().mean().sqrt().item() for y in pair)
        ratios.append(ours / theirs if theirs else 1.0 if not ours else math.inf)
    return Figure("float32 error", "x cuBLAS SGEMM's", max(ratios))
