"""A loss that PyTorch computes between the compiled passes: called once a step, as in the loop, and
if it raises the step has not been, whatever Dropout had drawn for it."""

import warnings

import pytest
import torch
from torch import nn
from train_twins import assert_same, snapshot

from mlp_ext import TrainStep

X = torch.randn(8, 4)


def made(p):
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(p), nn.Linear(6, 3))
    return TrainStep(model, nn.MSELoss(), torch.optim.Adam(model.parameters(), 0.1))


@pytest.mark.parametrize("p", [0.0, 0.5])
@pytest.mark.parametrize("steps", [0, 1])
def test_nothing_has_changed(p, steps):
    step = made(p)
    for _ in range(steps):
        step(X, torch.randn(8, 3))
    before = snapshot(step)
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match="must match the size"):
        warnings.simplefilter("ignore")  # of the shapes that do not fit
        step(X, torch.zeros(8, 2))
    assert_same(before, snapshot(step))


def test_the_next_step_draws_the_same():
    losses = []
    for fails in (False, True):
        torch.manual_seed(0)
        step, y = made(0.5), torch.zeros(8, 3)
        step(X, y)
        if fails:
            with warnings.catch_warnings(), pytest.raises(RuntimeError):
                warnings.simplefilter("ignore")
                step(X, torch.zeros(8, 2))
        losses.append(step(X, y))
    assert torch.equal(*losses)


def test_it_is_called_once():
    step = made(0.5)
    step(X, torch.zeros(8, 3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step(X, torch.zeros(8, 1))
    assert len(caught) == 1 and "is different to the input size" in str(caught[0].message)
