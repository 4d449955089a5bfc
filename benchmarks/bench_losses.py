"""Cross-entropy, forward + backward."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

import mlp_ext

from .calls import forward_backward, randn
from .harness import Case, against

SHAPES = {
    False: ((2, 2), (64, 10), (512, 10), (256, 1000)),
    True: ((4096, 32), (64, 32000)),
}


def cases(full: bool) -> Iterator[Case]:
    for rows, classes in SHAPES[False] + (SHAPES[True] if full else ()):
        logits = randn((rows, classes))
        target = torch.arange(rows) % classes
        functions = (F.cross_entropy, mlp_ext.functional.cross_entropy)
        yield Case(
            "losses",
            f"cross_entropy {rows} x {classes}",
            against(*(forward_backward(f, logits, target) for f in functions)),
        )
