"""Memory that others have freed or cut: TrainStep raises, and nothing has changed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mlp_ext import TrainStep, optim
from mlp_ext.data import DataLoader


def made(name="Adam"):
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    options = {"momentum": 0.9} if name == "SGD" else {}
    loss = nn.CrossEntropyLoss(torch.ones(3))
    return TrainStep(model, loss, getattr(optim, name)(model.parameters(), lr=0.1, **options))


PLACES = {
    "x": lambda step, x, y: x,
    "y": lambda step, x, y: y,
    "weight": lambda step, x, y: step.model[0].weight,
    "bias": lambda step, x, y: step.model[3].bias,
    "running mean": lambda step, x, y: step.model[1].running_mean,
    "batches": lambda step, x, y: step.model[1].num_batches_tracked,
    "weights of the loss": lambda step, x, y: step.loss_fn.weight,
    "state": lambda step, x, y: next(
        t for t in step.optimizer.state[step.model[0].weight].values() if t.dim()
    ),
}


def values(step, freed):
    tensors = [*step.model.state_dict().values()]
    tensors += [t for s in step.optimizer.state.values() for t in s.values()]
    lost = freed.untyped_storage()
    return [t.clone() for t in tensors if t.untyped_storage()._cdata != lost._cdata]


@pytest.mark.parametrize("left", (0, 4))
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ("SGD", "Adam"))
@pytest.mark.parametrize("steps", (0, 1))
def test_freed_and_cut_memory(place, left, name, steps):
    step, x, y = made(name), torch.randn(8, 8), torch.randint(3, (8,))
    for _ in range(max(steps, place == "state")):
        step(x, y)
    freed = PLACES[place](step, x, y)
    before = values(step, freed)
    freed.untyped_storage().resize_(left)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            step(x, y)
    after = values(step, freed)[: len(before)]  # without states that are made by a first step
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("place", ("x", "y"))
def test_an_epoch_over_freed_memory(place):
    step, x, y = made(), torch.randn(8, 8), torch.randint(3, (8,))
    loader = DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
    step.epoch(loader)
    before = values(step, x)
    PLACES[place](step, x, y).untyped_storage().resize_(0)
    with pytest.raises(RuntimeError):
        step.epoch(loader)
    assert all(map(torch.equal, before, values(step, x)))


@pytest.mark.parametrize("place", ("x", "y"))
def test_host_losses_over_freed_memory(place):
    """Targets that PyTorch's loss takes: it reads them, and does not look."""
    model = nn.Linear(8, 3)
    step = TrainStep(model, F.mse_loss, torch.optim.SGD(model.parameters(), 0.1))
    x, y = torch.randn(8, 8), torch.rand(8, 3, dtype=torch.float64)
    step(x, y)
    PLACES[place](step, x, y).untyped_storage().resize_(0)
    with pytest.raises(RuntimeError):
        step(x, y)
