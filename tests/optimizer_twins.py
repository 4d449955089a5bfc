"""What the optimizer tests share: their configurations, and twins of ours and torch's."""

import pytest
import torch
from cases import loop, relative_error, relayout

from mlp_ext import optim

SHAPES = ((33, 17), (64,), (), (0,), (1,), (3, 5, 7), (150, 77))
OPTIONS = {
    "SGD": (
        {"lr": 0.1},
        {"lr": 0.1, "momentum": 0.9},
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01},
        {"lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 1e-3, "maximize": True},
        {"lr": 0.1, "weight_decay": 0.1},
        {"lr": 0.0, "momentum": 0.5},
    ),
    "Adam": (
        {},
        {"lr": 0.01, "weight_decay": 0.1},
        {"lr": 0.01, "amsgrad": True},
        {"lr": 0.01, "maximize": True, "betas": (0.5, 0.9), "eps": 1e-3},
        {"lr": 0.01, "betas": (0.0, 0.0), "amsgrad": True, "weight_decay": 0.01},
        {"lr": 0.01, "decoupled_weight_decay": True, "weight_decay": 0.1, "eps": 0.0},
    ),
    "AdamW": (
        {},
        {"lr": 0.01, "weight_decay": 0.3, "amsgrad": True},
        {"lr": 0.01, "weight_decay": 0.0, "maximize": True, "betas": (0.8, 0.99)},
    ),
    "Adagrad": (
        {},
        {"lr": 0.1, "lr_decay": 0.05, "weight_decay": 0.1},
        {"lr": 0.1, "initial_accumulator_value": 0.5, "maximize": True, "eps": 1e-3},
    ),
    "RMSprop": (
        {},
        {"lr": 0.01, "weight_decay": 0.1, "alpha": 0.9},
        {"lr": 0.01, "momentum": 0.9, "maximize": True},
        {"lr": 0.01, "centered": True, "eps": 1e-3},
        {"lr": 0.01, "centered": True, "momentum": 0.5, "weight_decay": 0.01},
    ),
    "NAdam": (
        {},
        {"lr": 0.01, "weight_decay": 0.1, "momentum_decay": 0.05},
        {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
        {"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-3},
    ),
    "RAdam": (
        {},
        {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1},
        {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
        {"lr": 0.01, "betas": (0.5, 0.6), "eps": 1e-3},
    ),
    "Adamax": (
        {},
        {"lr": 0.01, "weight_decay": 0.1, "betas": (0.5, 0.9)},
        {"lr": 0.01, "maximize": True, "eps": 1e-3},
    ),
}
CONFIGS = [(name, options) for name, many in OPTIONS.items() for options in many]
CLASSES = tuple(OPTIONS)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


def config_id(config):
    return config[0] + "".join(f"-{k}={v}" for k, v in config[1].items())


configs = pytest.mark.parametrize("config", CONFIGS, ids=config_id)
classes = pytest.mark.parametrize("name", CLASSES)


class Twins:
    """One optimizer of ours and one of torch's on equal parameters, fed the same gradients.

    ours: options of our optimizer alone.
    """

    def __init__(
        self,
        name,
        shapes=SHAPES,
        dtype=torch.float32,
        layout="contiguous",
        device="cpu",
        ours=None,
        **options,
    ):
        initial = [torch.randn(s, dtype=torch.float64).to(device, dtype) for s in shapes]
        self.params = [
            [torch.nn.Parameter(relayout(t.clone(), layout)) for t in initial] for _ in range(2)
        ]
        self.optimizers = [
            getattr(optim, name)(self.params[0], **{**options, **(ours or {})}),
            getattr(torch.optim, name)(self.params[1], **loop(name), **options),
        ]
        # Magnitudes from 1e-4 to 10 side by side: eps matters for some, not for others.
        self.magnitude = [10 ** (5 * torch.rand(s) - 4) for s in shapes]

    def gradients(self):
        return [
            (torch.randn(m.shape) * m).to(p.device, p.dtype)
            for m, p in zip(self.magnitude, self.params[0], strict=True)
        ]

    def run(self, steps, layout="contiguous", missing=lambda step, i: False):
        for step in range(steps):
            for i, gradient in enumerate(self.gradients()):
                for params in self.params:
                    params[i].grad = (
                        None if missing(step, i) else relayout(gradient.clone(), layout)
                    )
            for optimizer in self.optimizers:
                optimizer.step()
        return self

    def check(self):
        """Both hold the same; returns self, to go on with."""
        kinds = {}  # (state key, dtype) -> [(label, ours, theirs)]
        for i, (p, q) in enumerate(zip(*self.params, strict=True)):
            mine, other = self.optimizers[0].state.get(p, {}), self.optimizers[1].state.get(q, {})
            assert mine.keys() == other.keys(), f"state of parameter {i}"
            for key, value in {"value": q, **other}.items():
                kinds.setdefault((key, value.dtype), []).append(
                    (i, {"value": p, **mine}[key], value)
                )
        for (key, dtype), many in kinds.items():
            limit = TOLERANCE[dtype] * max(largest(theirs) for _, _, theirs in many)
            for i, ours, theirs in many:
                assert ours.dtype == dtype, f"{key} of parameter {i}: {ours.dtype}"
                difference = relative_error(ours.cpu(), theirs.cpu()) * largest(theirs)
                assert difference <= limit, (
                    f"{key} of parameter {i} {tuple(theirs.shape)}: {difference:.2e} > {limit:.2e}"
                )
        return self


def largest(tensor):
    finite = tensor.detach()[tensor.isfinite()].double()
    return finite.abs().max().item() if finite.numel() else 0.0
