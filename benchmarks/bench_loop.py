"""The unchanged training loop: forward, cross-entropy, zero_grad, backward, step; see peers.py."""

from collections.abc import Iterator

from .harness import Case, Competitor
from .models import NETS, label, step_bytes, step_flops
from .peers import COMPETITORS


def stepper(trainer, name: str, **options):
    """A competitor's `make`."""
    return lambda: trainer(name, **options).step


def cases(full: bool) -> Iterator[Case]:
    for name in NETS:
        yield Case(
            "loop",
            label(name),
            {
                competitor: Competitor(stepper(entry.trainer, name), entry.role)
                for competitor, entry in COMPETITORS.items()
            },
            flops=step_flops(name),
            bytes=step_bytes(name),
            ceiling="fma",
        )
