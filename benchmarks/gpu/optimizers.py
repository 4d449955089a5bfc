"""Adam's step and clipping, gradients at hand.

"wall" is what a loop takes, launches included, on one set of tensors, which as in training may
stay in the L2 cache. "graph" is the GPU's part alone, of a recorded graph (capturable=True, without
which PyTorch's step cannot be recorded), with tensors from memory.
"""

from collections.abc import Iterator
from functools import partial

import torch

import mlp_ext

from ..harness import BASELINE, OURS, Case, Competitor
from ..models import ADAM_BYTES
from .timing import Timed, recorded

MILLIONS = (0.1, 1, 16, 100)


def shapes_of(millions: float) -> list[tuple[int, ...]]:
    """Layers with biases, as an MLP has: four of the same width."""
    width = round((millions * 1e6 / 4) ** 0.5)
    return [(width, width), (width,)] * 4


def parameters_on(device, shapes, i: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator(device.torch).manual_seed(i)
    made = []
    for shape in shapes:
        drawn = (torch.randn(shape, generator=generator, device=device.torch) for _ in range(2))
        made.append(torch.nn.Parameter(next(drawn)))
        made[-1].grad = next(drawn)
    return made


def cases(device) -> Iterator[Timed]:
    for size in (0.0001,) if device.tiny else MILLIONS:
        shapes = shapes_of(size)
        number = sum(torch.Size(shape).numel() for shape in shapes)
        # A parameter, its gradient and two states. Not more sets than a 16 GB GPU holds.
        sets = max(1, min(device.sets(16 * number), int(4e9 / (16 * number))))

        def step(optimizer, i: int = 0, shapes=shapes, **options):
            return optimizer(parameters_on(device, shapes, i), **options).step

        def in_a_graph(optimizer, step=step, sets=sets, **options):
            make = partial(step, optimizer, capturable=not device.tiny, **options)
            return recorded(device, make, sets)

        for how, prepare in (("wall", partial(partial, step)), ("graph", in_a_graph)):
            competitors = {
                "torch foreach": Competitor(prepare(torch.optim.Adam, foreach=True)),
                "torch fused": Competitor(prepare(torch.optim.Adam, fused=True), BASELINE),
                "mlp_ext": Competitor(prepare(mlp_ext.optim.Adam), OURS),
            }
            name = f"Adam {size:g} M, {how}"
            case = Case("adam", name, competitors, bytes=float(ADAM_BYTES * number))
            paths = {"mlp_ext": f"optimizers, {how}"}
            yield Timed(case, 1 if how == "wall" else sets, how == "wall", paths)


def clipping(device) -> Iterator[Timed]:
    shapes = shapes_of(0.0001 if device.tiny else 1)

    def prepare(clip, **options):
        return lambda: partial(clip, parameters_on(device, shapes), 1.0, **options)

    competitors = {
        "torch": Competitor(prepare(torch.nn.utils.clip_grad_norm_, foreach=True), BASELINE),
        "mlp_ext": Competitor(prepare(mlp_ext.nn.utils.clip_grad_norm_), OURS),
    }
    case = Case("clip", "clip_grad_norm_ 1 M, wall", competitors)
    yield Timed(case, wall=True, paths={"mlp_ext": "clip_norm"})
