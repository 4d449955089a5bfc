"""linear_relu against F.relu(F.linear) over a grid of shapes, forward and forward + backward."""

from collections.abc import Iterator
from itertools import product

import torch.nn.functional as F

import mlp_ext

from .calls import forward, forward_backward, randn
from .harness import Case, against

GRID = {
    False: ((1, 16, 256), (64, 512), (64, 512)),
    True: ((1, 4, 16, 64, 256, 1024), (16, 64, 256, 512, 1024), (16, 64, 256, 512, 1024)),
}


def plain_linear_relu(x, weight, bias):
    return F.relu(F.linear(x, weight, bias))


def cases(full: bool) -> Iterator[Case]:
    functions = (plain_linear_relu, mlp_ext.functional.linear_relu)
    for m, n, k in product(*GRID[full]):
        *inputs, grad = randn((m, k), (n, k), (n,), (m, n))
        numbers = m * k + n * k + m * n
        competitors = {
            "forward": against(*(forward(f, *inputs) for f in functions)),
            "forward+backward": against(
                *(forward_backward(f, inputs, grad=grad) for f in functions)
            ),
        }
        for (mode, pair), products in zip(competitors.items(), (1, 3), strict=True):
            yield Case(
                "linear",
                f"{mode} M={m} N={n} K={k}",
                pair,
                flops=2.0 * m * n * k * products,
                bytes=4.0 * numbers * products,
                ceiling="fma",
            )
