"""Cross-entropy, forward + backward."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

import mlp_ext

from .harness import Case


def train_of(function, logits, target) -> Callable[[], object]:
    logits = logits.clone().requires_grad_()

    def forward_backward():
        return torch.autograd.grad(function(logits, target), logits)

    return forward_backward


def cases(full: bool) -> Iterator[Case]:
    shapes = [(2, 2), (64, 10), (512, 10), (256, 1000)] + ([(4096, 32), (64, 32000)] * full)
    for rows, classes in shapes:
        logits, target = torch.randn(rows, classes), torch.randint(classes, (rows,))
        yield Case(
            "losses",
            f"cross_entropy {rows} x {classes}",
            {
                "torch": train_of(F.cross_entropy, logits, target),
                "mlp_ext": train_of(mlp_ext.functional.cross_entropy, logits, target),
            },
            ours="mlp_ext",
            baseline="torch",
        )
