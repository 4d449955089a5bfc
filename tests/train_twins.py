"""What the TrainStep tests share: a model trained by TrainStep beside its twin in a plain loop."""

import copy

import torch
from cases import relative_error
from torch import nn

from mlp_ext import TrainStep, optim

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
ROWS = (300, (33, 40, 20, 5))  # two threads cut it by rows of the batch
LAYERS = (60, (400, 350, 33, 5))  # and this one by layers


def net(sizes, activation=nn.Tanh, *, dtype=torch.float64, bias=True, last=None):
    """Linear layers with activation() between them, and `last`, a module, behind the last."""
    children = []
    for i, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
        children += [activation()] * (i > 0) + [nn.Linear(fan_in, fan_out, bias, dtype=dtype)]
    return nn.Sequential(*children, *([] if last is None else [last]))


def draw(kind, rows, sizes, dtype=torch.float64):
    """A batch for a net of these sizes and a loss of this kind."""
    x = torch.randn(rows, sizes[0], dtype=dtype)
    if kind == "classes":
        return x, torch.randint(sizes[-1], (rows,))
    return x, (torch.rand if kind == "probabilities" else torch.randn)(rows, sizes[-1], dtype=dtype)


def make(name, own=True, **options):
    """A maker of optimizers for Twins. own: TrainStep gets mlp_ext's class, the loop torch's."""

    def of(model, plain):
        module = optim if own and not plain else torch.optim
        return getattr(module, name)(model.parameters(), **options)

    return of


class Twins:
    """`model` under TrainStep, and `plain`, its deep copy, in the loop that it stands for."""

    def __init__(self, model, loss_fn, maker, *, clip=None):
        self.model, self.plain = model, copy.deepcopy(model)
        self.loss_fn, self.clip = loss_fn, clip
        self.optimizer, self.plain_optimizer = maker(model, False), maker(self.plain, True)
        self.step = TrainStep(model, loss_fn, self.optimizer, clip_grad_norm=clip)
        self.dtype = next(model.parameters()).dtype

    def eager(self, x, y, plain=True):
        """The loop's step, on the twin or (plain=False) on the model itself; in one thread, as on
        busy cores PyTorch's small operators wait milliseconds for the second."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        model = self.plain if plain else self.model
        optimizer = self.plain_optimizer if plain else self.optimizer
        loss = self.loss_fn(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), self.clip)
        optimizer.step()
        torch.set_num_threads(threads)
        return loss.detach()

    def both(self, x, y, **options):
        """One step of each; the losses must agree."""
        ours, theirs = self.step(x, y, **options), self.eager(x, y)
        assert ours.shape == () and ours.dtype == theirs.dtype and not ours.requires_grad
        error = relative_error(ours, theirs)
        assert error <= TOLERANCE[self.dtype], f"loss {ours}, in the loop {theirs}"
        return ours

    def run(self, kind, rows, sizes, steps):
        for _ in range(steps):
            self.both(*draw(kind, rows, sizes, self.dtype))

    def check(self, tolerance=None):
        """Parameters agree, each relative to its largest element, and so do the optimizers' states,
        relative to the largest that the same state has in any parameter (see test_optim.py)."""
        tolerance = tolerance or TOLERANCE[self.dtype]
        pairs = list(zip(self.model.named_parameters(), self.plain.parameters(), strict=True))
        for (name, ours), theirs in pairs:
            error = relative_error(ours, theirs)
            assert error <= tolerance, f"{name}: relative error {error:.1e}"
        worst, largest = {}, {}
        for (name, ours), theirs in pairs:
            a, b = self.optimizer.state.get(ours, {}), self.plain_optimizer.state.get(theirs, {})
            kept = [{k: v for k, v in s.items() if v is not None} for s in (a, b)]
            assert kept[0].keys() == kept[1].keys(), name
            for key, value in kept[1].items():
                assert kept[0][key].dtype == value.dtype and kept[0][key].shape == value.shape
                difference = (kept[0][key] - value).abs().max().item()
                worst[key] = max(worst.get(key, 0.0), difference)
                largest[key] = max(largest.get(key, 0.0), value.abs().max().item())
        for key in worst:
            assert worst[key] <= tolerance * largest[key], f"{key}: off by {worst[key]:.1e}"


def snapshot(step):
    """All that a refused call must leave alone."""
    return copy.deepcopy(
        {
            "parameters": {name: p.detach() for name, p in step.model.named_parameters()},
            "grads": [p.grad for p in step.model.parameters()],
            "states": [dict(s) for s in step.optimizer.state.values()],
            "versions": [p._version for p in step.model.parameters()],
            "rng": torch.get_rng_state(),
        }
    )


def assert_same(before, after):
    torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)
