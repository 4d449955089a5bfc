"""linear_relu against F.relu(F.linear) over a grid of shapes, forward and forward + backward."""

from collections.abc import Callable, Iterator
from itertools import product

import torch
import torch.nn.functional as F

import mlp_ext

from .harness import Case

GRID = {
    False: ((1, 16, 256), (64, 512), (64, 512)),
    True: ((1, 4, 16, 64, 256, 1024), (16, 64, 256, 1024), (16, 64, 256, 1024)),
}


def plain_linear_relu(x, weight, bias):
    return F.relu(F.linear(x, weight, bias))


def forward_of(function, x, weight, bias) -> Callable[[], object]:
    def forward():
        with torch.no_grad():
            return function(x, weight, bias)

    return forward


def train_of(function, x, weight, bias, grad) -> Callable[[], object]:
    inputs = tuple(t.clone().requires_grad_() for t in (x, weight, bias))

    def forward_backward():
        return torch.autograd.grad(function(*inputs), inputs, grad)

    return forward_backward


def cases(full: bool) -> Iterator[Case]:
    functions = {"torch": plain_linear_relu, "mlp_ext": mlp_ext.functional.linear_relu}
    for m, n, k in product(*GRID[full]):
        generator = torch.Generator().manual_seed(0)
        x, weight, bias, grad = (
            torch.randn(*shape, generator=generator) for shape in ((m, k), (n, k), (n,), (m, n))
        )
        shape = f"M={m} N={n} K={k}"
        names = {"ours": "mlp_ext", "baseline": "torch"}
        yield Case(
            "linear",
            f"forward {shape}",
            {name: forward_of(f, x, weight, bias) for name, f in functions.items()},
            work=2.0 * m * n * k,
            **names,
        )
        yield Case(
            "linear",
            f"forward+backward {shape}",
            {name: train_of(f, x, weight, bias, grad) for name, f in functions.items()},
            work=6.0 * m * n * k,
            **names,
        )
