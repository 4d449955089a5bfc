"""What is timed, in the order of what is most worth knowing: the last is what is left out."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain

from . import layers, losses, optimizers, rates, steps
from .worker import Item


def _timed(cases: Callable) -> Callable:
    return lambda device: (each.item() for each in cases(device))


# (part, what makes its items); `--only` names parts.
ORDER: tuple[tuple[str, Callable], ...] = (
    ("rates", rates.items),
    ("adam", _timed(optimizers.cases)),
    ("steps", _timed(steps.first)),
    ("layers", _timed(partial(layers.cases, shapes=layers.SHAPES[:4]))),
    ("stacks", _timed(layers.stacks)),
    ("losses", _timed(losses.cases)),
    ("steps", _timed(steps.rest)),
    ("tiles", _timed(layers.tiles)),
    ("clip", _timed(optimizers.clipping)),
    ("layers", _timed(partial(layers.cases, shapes=layers.SHAPES[4:]))),
)


def items(device, parts: Iterable[str] = ()) -> Iterator[Item]:
    """parts: none for all."""
    chosen = set(parts) or {part for part, _ in ORDER}
    return chain.from_iterable(make(device) for part, make in ORDER if part in chosen)
