"""The losses, forward + backward."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import mlp_ext

from .calls import forward_backward, randn
from .harness import Case, against

CLASSES = {
    False: ((2, 2), (64, 3), (256, 4), (64, 10), (512, 10), (256, 1000)),
    True: ((512, 2), (4096, 32), (64, 32000)),
}
PROBABILITIES = {False: ((64, 3), (512, 10)), True: ((256, 1000),)}
IMAGES = {False: ((2, 21, 64, 64),), True: ((2, 21, 256, 256), (64, 10, 4))}
ELEMENTS = {False: ((64, 1), (256, 6), (512, 256)), True: ((4096, 1024),)}
ELEMENTWISE = (
    ("mse_loss", False),
    ("binary_cross_entropy_with_logits", False),
    ("smooth_l1_loss", True),
    ("huber_loss", True),
    ("l1_loss", True),
)  # name, whether only the full suite has it


def case(name: str, function: str, shape: tuple[int, ...], target: Tensor) -> Case:
    functions: tuple[Callable, ...] = tuple(
        getattr(module, function) for module in (F, mlp_ext.functional)
    )
    calls = (forward_backward(f, randn(shape), target) for f in functions)
    return Case("losses", f"{name} {' x '.join(map(str, shape))}", against(*calls))


def cases(full: bool) -> Iterator[Case]:
    def chosen(shapes):
        return shapes[False] + (shapes[True] if full else ())

    for shape in chosen(CLASSES):
        yield case("cross_entropy", "cross_entropy", shape, torch.arange(shape[0]) % shape[1])
    for shape in chosen(PROBABILITIES):
        (target,) = randn(shape)
        yield case("cross_entropy, probabilities,", "cross_entropy", shape, target.softmax(1))
    for shape in chosen(IMAGES):
        pixels = (shape[0], *shape[2:])
        target = torch.arange(torch.Size(pixels).numel()).view(pixels) % shape[1]
        yield case("cross_entropy, pixels,", "cross_entropy", shape, target)
    for name, only_full in ELEMENTWISE:
        for shape in chosen(ELEMENTS) if full or not only_full else ():
            (target,) = randn(shape)
            yield case(name, name, shape, target.sigmoid())
