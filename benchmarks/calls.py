"""What the suites time: a function's forward pass, or forward and backward."""

from collections.abc import Callable

import torch

from .harness import Call


def forward(function: Callable, *inputs) -> Callable[[], Call]:
    """A competitor's `make`: function(*inputs) without autograd."""

    def make():
        def call():
            with torch.no_grad():
                return function(*inputs)

        return call

    return make


def forward_backward(function: Callable, leaves, *rest, grad=None) -> Callable[[], Call]:
    """A competitor's `make`: the gradients of function(*leaves, *rest) for copies of `leaves`."""

    def make():
        copies = tuple(leaf.detach().clone().requires_grad_() for leaf in leaves)

        def call():
            return torch.autograd.grad(function(*copies, *rest), copies, grad)

        return call

    return make


def randn(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    """Normal numbers, the same every time."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]
