"""Ours on the device against float64 on the CPU, each case twice: the bits must be the same.

An error passes that is at most twice PyTorch's on the same device, in the same arithmetic. smoke is
every kernel once; the grid is shapes at the edges of tiles, in every dtype.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .ops import DTYPES, Op, Shape, linear_ops, loss_ops, mlp_ops
from .settings import TILES, settings
from .training_ops import optimizer_ops, step_ops
from .worker import Item

# A relative error that always passes: PyTorch may be exact by luck, or use float32 for a small tf32
# product, and one cancelling sum is the whole of some results.
FLOOR = {torch.float32: 64, torch.float64: 4096, torch.bfloat16: 8, torch.float16: 8}  # x eps
TF32_FLOOR = 8 * 2.0**-10

SMALL: tuple[Shape, ...] = ((7, 33, 17), (64, 64, 64), (130, 200, 300))
# Around tiles of 16 to 128, long sums (split-K), one row, one column, rows of no 16-byte multiple.
OTHERS: tuple[Shape, ...] = (
    *((256, 10, 784), (1, 257, 65), (129, 1, 63), (127, 129, 33), (64, 64, 4097), (1, 1, 1)),
    *((128, 128, 32), (33, 1001, 129), (1031, 5, 3), (512, 512, 1024), (2048, 257, 1030)),
)
PRODUCTS = ("linear", "mlp")
FAMILIES = {"linear": linear_ops, "mlp": mlp_ops, "losses": loss_ops, "optimizers": optimizer_ops,
            "TrainStep": step_ops}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A shape in a dtype, by these families of ops under these settings."""

    shape: Shape
    dtype: torch.dtype
    families: tuple[str, ...] = tuple(FAMILIES)
    precision: str = "highest"
    force: str = ""

    @property
    def floor(self) -> float:
        tf32 = self.precision == "high"
        return TF32_FLOOR if tf32 else FLOOR[self.dtype] * torch.finfo(self.dtype).eps

    @property
    def name(self) -> str:
        dtype = "tf32" if self.precision == "high" else str(self.dtype).removeprefix("torch.")
        sizes = "x".join(map(str, self.shape))
        families = "" if len(self.families) == len(FAMILIES) else "+".join(self.families)
        return " ".join(filter(None, (dtype, sizes, families, self.force)))

    def settings(self):
        return settings(self.precision, self.force)

    def ops(self) -> Iterator[Op]:
        for family in self.families:
            yield from FAMILIES[family](self.shape, self.dtype)


def _by_every_product(shape: Shape, splits: Sequence[int]) -> Iterator[Case]:
    """Our tiles and cuBLASLt, in every arithmetic that has the choice."""
    for dtype in DTYPES:
        for precision in ("highest", "high")[: 1 + (dtype == torch.float32)]:
            make = partial(Case, shape, dtype, PRODUCTS, precision)
            if dtype != torch.float64:
                yield from (make(f"{tile},{split}") for tile in TILES for split in splits)
            if dtype != torch.float32 or precision == "high":
                yield make("library")


def smoke_cases(tiny: bool = False) -> Iterator[Case]:
    for dtype in DTYPES[:1] if tiny else DTYPES:
        yield from (Case((7, 33, 17), dtype, (family,)) for family in FAMILIES)
        yield Case((5, 150, 40), dtype, PRODUCTS)  # a stack that is too wide for one launch
    yield from () if tiny else _by_every_product((9, 37, 70), (3,))


def grid_cases(tiny: bool = False) -> Iterator[Case]:
    if tiny:
        yield from (Case(SMALL[0], dtype) for dtype in DTYPES)
        yield from list(_by_every_product(SMALL[0], (4,)))[::4]
        return
    for shape in SMALL:
        yield from (Case(shape, dtype) for dtype in DTYPES)
    yield from _by_every_product(SMALL[-1], (1, 4))
    for shape in OTHERS:
        yield from (Case(shape, dtype) for dtype in DTYPES)
        yield Case(shape, torch.float32, PRODUCTS, "high")
        yield from (Case(shape, dtype, PRODUCTS, force="library") for dtype in DTYPES[1:])


def results(function, op: Op, tensors: Sequence) -> list[Tensor]:
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
        generator = torch.Generator().manual_seed(1)
        dy = torch.randn(out.shape, generator=generator, dtype=torch.float64)
        if op.smooth is not None:
            dy *= op.smooth
        # Rounded first, so that the float64 reference gets the same one in every dtype.
        dy = dy.bfloat16().to(out.device, out.dtype)
        grads = torch.autograd.grad(out, wanted, dy, allow_unused=True)
        made += [g for g in grads if g is not None]
    return [t.detach().cpu() for t in made]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest, relative to the result's largest element."""
    if actual.shape != expected.shape:
        return math.inf
    if not expected.numel():
        return 0.0
    scale = expected.abs().max().item()
    difference = (actual.double() - expected).abs().max().item()
    return math.inf if math.isnan(difference) else difference / scale if scale else difference


def check(op: Op, device, floor: float) -> dict:
    first, second = (results(op.ours, op, op.tensors_on(device.torch)) for _ in range(2))
    theirs = results(op.theirs, op, op.tensors_on(device.torch))
    exact = results(op.theirs, op, op.tensors_on(torch.device("cpu"), torch.float64))
    pairs = zip(first, theirs, exact, strict=True)
    errors = [(relative_error(a, e), relative_error(b, e)) for a, b, e in pairs]
    worst, torchs = max(errors, key=lambda pair: pair[0] / max(2 * pair[1], floor))
    same_bits = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    near = worst <= max(2 * torchs, floor)
    note = "" if near and same_bits else "differs from run to run" if near else "wrong"
    return {"error": worst, "torch_error": torchs, "same_bits": same_bits, "note": note}


def _checks(case: Case, device) -> Iterator[dict]:
    for op in case.ops():
        with case.settings():
            try:
                found = check(op, device, case.floor)
            except Exception as error:  # the others are still checked, unless the device is lost
                device.synchronize()
                note = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
                found = {"error": None, "torch_error": None, "same_bits": False, "note": note}
        yield {
            "kind": "check",
            "name": f"{op.name} {case.name}",
            "passed": not found["note"],
        } | found


def _items(cases) -> Iterator[Item]:
    return (Item(case.name, partial(_checks, case)) for case in cases)


def smoke(tiny: bool = False) -> Iterator[Item]:
    return _items(smoke_cases(tiny))


def grid(tiny: bool = False) -> Iterator[Item]:
    return _items(grid_cases(tiny))
