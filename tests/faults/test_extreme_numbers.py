"""NaN, infinities and saturated values: torch's results, and no digit fewer."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mlp_ext import TrainStep, functional

INF, NAN = float("inf"), float("nan")
floats = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@floats
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu", "silu", "tanh", "sigmoid"])
def test_activations(name, value, dtype):
    """Of rows that fill vectors: for elu at NaN torch's remainders give another answer (1)."""
    results = []
    for apply in (
        lambda x: functional.linear(x, torch.eye(1).to(x), activation=name),
        getattr(F, name) if name not in ("tanh", "sigmoid") else getattr(torch, name),
    ):
        x = torch.full((64, 1), value, dtype=dtype, requires_grad=True)
        y = apply(x)
        y.sum().backward()
        results.append((y.detach(), x.grad))
    torch.testing.assert_close(*results, equal_nan=True)


BCE_INPUTS = [INF, -INF, NAN, 0.0, 1.0, -1.0, 120.0, -120.0]


@floats
@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("pos_weight", [None, 2.0, 0.5])
def test_bce_with_logits_at_infinities(pos_weight, reduction, dtype):
    for x, t in itertools.product(BCE_INPUTS, [INF, -INF, NAN, 0.0, 0.5, 1.0]):
        results = []
        for loss_fn in (
            functional.binary_cross_entropy_with_logits,
            F.binary_cross_entropy_with_logits,
        ):
            given = torch.full((33,), x, dtype=dtype, requires_grad=True)
            weight = None if pos_weight is None else torch.tensor([pos_weight], dtype=dtype)
            target = torch.full((33,), t, dtype=dtype)
            loss = loss_fn(given, target, pos_weight=weight, reduction=reduction)
            loss.sum().backward()
            results.append((loss.detach(), given.grad))
        torch.testing.assert_close(
            *results, equal_nan=True, msg=lambda m, x=x, t=t: f"{x} {t}: {m}"
        )


@floats
@pytest.mark.parametrize("pos_weight", [None, 3.0])
@pytest.mark.parametrize("road", ["kernel", "composite"])
def test_bce_with_logits_keeps_small_gradients(pos_weight, road, dtype):
    """Of what is classified well, negative or positive: a part in a million each."""
    x = torch.linspace(-40, 40, 81, dtype=dtype)
    for target in (0.0, 1.0):
        t = torch.full_like(x, target)
        weight = None if pos_weight is None else torch.tensor(pos_weight, dtype=dtype)
        given = x.clone().requires_grad_()
        loss = functional.binary_cross_entropy_with_logits(
            given, t, pos_weight=weight, reduction="sum"
        )
        (grad,) = torch.autograd.grad(loss, given, create_graph=road == "composite")
        p = 1.0 if pos_weight is None else pos_weight
        exact = x.double()
        exact = torch.sigmoid(exact) if target == 0 else -p * torch.sigmoid(-exact)
        torch.testing.assert_close(grad.detach().double(), exact, rtol=1e-6, atol=0)


def test_train_step_keeps_small_gradients():
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, -20.0)
    nn.init.zeros_(model.bias)
    step = TrainStep(
        model, F.binary_cross_entropy_with_logits, torch.optim.SGD(model.parameters(), 0.1)
    )
    step(torch.ones(8, 1), torch.zeros(8, 1), keep_grad=True)
    exact = torch.sigmoid(torch.tensor([-20.0], dtype=torch.float64)).float()
    torch.testing.assert_close(model.bias.grad, exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("pos_weight", [None, 2.0])
def test_second_derivative_of_bce_with_logits_at_zero(pos_weight):
    """Every logit of a head that was initialised with zeros."""
    weight = None if pos_weight is None else torch.tensor([pos_weight], dtype=torch.float64)
    target = torch.tensor([[0.0], [1.0], [0.3]], dtype=torch.float64)
    second = []
    for module in (functional, F):
        x = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True)
        loss = module.binary_cross_entropy_with_logits(x, target, pos_weight=weight)
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        second.append(torch.autograd.grad(first.sum(), x)[0])
    torch.testing.assert_close(*second, rtol=1e-12, atol=0)
