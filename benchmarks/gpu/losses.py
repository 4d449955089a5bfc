"""The losses, forward + backward. The bytes are the least: read input and target, write the
gradient."""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

from mlp_ext import functional

from .. import calls
from .timing import Timed, compare

SHAPES = ((65536, 1000), (512, 10), (8192, 32000))
ELEMENTWISE = {"bce_with_logits": "binary_cross_entropy_with_logits", "mse_loss": "mse_loss"}


def _case(device, name: str, function: str, shape: tuple[int, int]) -> Timed:
    rows, columns = shape
    numbers, of_classes = rows * columns, function == "cross_entropy"

    def make(loss, i: int):
        generator = torch.Generator(device.torch).manual_seed(i)
        options = {"generator": generator, "device": device.torch}
        logits = torch.randn(shape, **options)
        if of_classes:
            target = torch.randint(columns, (rows,), **options)
        else:
            target = torch.rand(shape, **options)
        return calls.forward_backward(loss, (logits,), target)()

    theirs, ours = (getattr(module, function) for module in (F, functional))
    makes = {
        "torch": lambda: partial(make, theirs),
        "torch.compile": lambda: partial(make, device.compiled(theirs)),
        "mlp_ext": lambda: partial(make, ours),
    }
    sets = device.sets(4 * numbers * (1 if of_classes else 2))
    least = 8.0 * numbers + 8.0 * rows if of_classes else 12.0 * numbers
    title, paths = f"{name} {rows} x {columns}", {"mlp_ext": name}
    return compare(device, "losses", title, sets, makes, bytes=least, paths=paths)


def cases(device) -> Iterator[Timed]:
    shapes = ((4, 3),) if device.tiny else SHAPES
    for shape in shapes:
        yield _case(device, "cross_entropy", "cross_entropy", shape)
    for name, function in ELEMENTWISE.items():
        for shape in shapes[:2]:
            yield _case(device, name, function, shape)
