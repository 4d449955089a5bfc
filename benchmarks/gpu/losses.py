"""The losses, forward + backward. The bytes are the least: read input and target, write the
gradient."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

import mlp_ext

from .. import calls
from ..harness import BASELINE, OURS, Case, Competitor
from .cases import GpuCase, recorded

SHAPES = ((512, 10), (8192, 32000), (65536, 1000))
ELEMENTWISE = {
    "bce_with_logits": "binary_cross_entropy_with_logits",
    "mse_loss": "mse_loss",
    "smooth_l1_loss": "smooth_l1_loss",
}
ELEMENTWISE_SHAPES = ((512, 10), (65536, 1000))


def _case(device, name: str, function: str, shape: tuple[int, int], of_classes: bool) -> GpuCase:
    rows, columns = shape
    numbers = rows * columns
    sets = device.sets(4 * numbers * (1 if of_classes else 2))

    def make(function: Callable):
        def of_set(i: int):
            generator = torch.Generator(device.torch).manual_seed(i)
            options = {"generator": generator, "device": device.torch}
            logits = torch.randn(shape, **options)
            if of_classes:
                target = torch.randint(columns, (rows,), **options)
            else:
                target = torch.rand(shape, **options)
            return calls.forward_backward(function, (logits,), target)()

        return recorded(device, of_set, sets)

    theirs, ours = (getattr(module, function) for module in (F, mlp_ext.functional))
    competitors = {
        "torch": Competitor(make(theirs), BASELINE),
        "torch.compile": Competitor(lambda: make(device.compiled(theirs))()),
        "mlp_ext": Competitor(make(ours), OURS),
    }
    least = 8.0 * numbers + 8.0 * rows if of_classes else 12.0 * numbers
    return GpuCase(Case("losses", f"{name} {rows} x {columns}", competitors, bytes=least), sets)


def cases(device, shapes=SHAPES, elementwise_shapes=ELEMENTWISE_SHAPES) -> Iterator[GpuCase]:
    for shape in shapes:
        yield _case(device, "cross_entropy", "cross_entropy", shape, of_classes=True)
    for name, function in ELEMENTWISE.items():
        for shape in elementwise_shapes:
            yield _case(device, name, function, shape, of_classes=False)
