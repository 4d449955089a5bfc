"""One optimizer step over many tensors, gradients at hand."""

from collections.abc import Iterator

import torch

import mlp_ext

from .harness import Case
from .models import plain_net

SHAPES = {
    "6 tiny tensors (seed)": "seed",
    "0.54 M parameters (mnist)": "mnist",
    "3.1 M parameters (wide)": "wide",
    "33.6 M parameters": None,
}


def parameters_of(net: str | None) -> list[torch.nn.Parameter]:
    if net is not None:
        parameters = list(plain_net(net).parameters())
    else:
        parameters = [torch.nn.Parameter(torch.randn(4096, 4096)) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return parameters


def cases(full: bool) -> Iterator[Case]:
    rules = {
        "Adam": (torch.optim.Adam, mlp_ext.optim.Adam, {}),
        "SGD momentum": (torch.optim.SGD, mlp_ext.optim.SGD, {"lr": 1e-3, "momentum": 0.9}),
    }
    for rule, (plain, ours, options) in rules.items():
        for shape, net in SHAPES.items():
            if net is None and not full:
                continue
            yield Case(
                "optimizers",
                f"{rule}, {shape}",
                {
                    "torch": plain(parameters_of(net), **options).step,
                    "torch fused": plain(parameters_of(net), fused=True, **options).step,
                    "mlp_ext": ours(parameters_of(net), **options).step,
                },
                ours="mlp_ext",
                baseline="torch fused",
            )
