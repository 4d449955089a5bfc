"""The nets that the benchmarks train: name -> (layer sizes, batch)."""

from collections.abc import Sequence

import torch

NETS: dict[str, tuple[list[int], int]] = {
    "seed": ([2, 30, 20, 2], 2),
    "book": ([50, 30, 20, 3], 64),
    "rl": ([64, 64, 64, 4], 256),
    "sac": ([17, 256, 256, 6], 256),
    "mnist": ([784, 512, 256, 10], 64),
    "mnist512": ([784, 512, 256, 10], 512),
    "wide": ([1024, 1024, 1024, 1024], 256),
}

ADAM_BYTES = 28  # of a float32 parameter: reads it, its gradient and two states, writes all but one


def label(name: str) -> str:
    sizes, batch = NETS[name]
    return f"{name} ({'-'.join(map(str, sizes))}, {batch})"


def plain_net(name: str) -> torch.nn.Sequential:
    """Linear, ReLU, Linear, ReLU, Linear in PyTorch's own classes, the same weights every time."""
    return net_of(NETS[name][0])


def net_of(sizes: list[int]) -> torch.nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[torch.nn.Module] = []
        for i, (inputs, outputs) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            layers += [torch.nn.ReLU()] if i else []
            layers.append(torch.nn.Linear(inputs, outputs))
    return torch.nn.Sequential(*layers)


def batch_of(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    sizes, batch = NETS[name]
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(batch, sizes[0], generator=generator)
    labels = torch.randint(sizes[-1], (batch,), generator=generator)
    return features, labels


def step_flops(name: str) -> float:
    return flops_of(*NETS[name])


def flops_of(sizes: Sequence[int], batch: int) -> float:
    """Forward, dW and, but for the first layer, dX."""
    pairs = list(zip(sizes[:-1], sizes[1:], strict=True))
    return sum(2.0 * batch * k * n * (3 if i else 2) for i, (k, n) in enumerate(pairs))


def step_bytes(name: str, size: int = 4) -> float:
    """The least that a step moves if nothing stays in a cache from the last one: Adam's traffic,
    and each activation written and read once. `size`: bytes of a number."""
    sizes, batch = NETS[name]
    parameters = sum(n * (k + 1) for k, n in zip(sizes[:-1], sizes[1:], strict=True))
    return size * (ADAM_BYTES / 4 * parameters + 2.0 * batch * sum(sizes))
