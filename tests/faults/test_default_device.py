"""torch.set_default_device("meta"), where torch's optimizers put the counters that name no device:
the loop's results or its type of error, and TrainStep says what is in its way."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import OPTIMIZERS
from torch import nn

from mlp_ext import TrainStep, optim


@pytest.fixture(params=["before the optimizer is made", "after"])
def on_meta(request):
    def begins(now):
        if now == request.param:
            torch.set_default_device("meta")

    yield begins
    torch.set_default_device(None)


def trained(name, module, on_meta, takes_step):
    """The parameters after three steps, or the error."""
    torch.manual_seed(0)
    x, y = torch.randn(8, 4, dtype=torch.float64), torch.randint(3, (8,))
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    before = copy.deepcopy(model.state_dict())
    on_meta("before the optimizer is made")
    optimizer = getattr(module, name)(model.parameters(), lr=0.01)
    on_meta("after")
    try:
        step = TrainStep(model, F.cross_entropy, optimizer) if takes_step else None
        for _ in range(3):
            if step:
                step(x, y)
                continue
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    except RuntimeError as error:
        if step:
            assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())
        return error
    finally:
        torch.set_default_device(None)
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name, on_meta):
    ours, theirs = (trained(name, module, on_meta, False) for module in (optim, torch.optim))
    if isinstance(theirs, RuntimeError):
        assert str(ours) == str(theirs)
    else:
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("module", [optim, torch.optim])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_train_step(name, module, on_meta):
    ours, theirs = (trained(name, module, on_meta, takes_step) for takes_step in (True, False))
    if isinstance(ours, RuntimeError):  # also where RMSprop's loop runs, which reads no counter
        assert isinstance(theirs, RuntimeError) or name == "RMSprop"
        assert "'step' of the optimizer's state is" in str(ours) and "on meta; expected" in str(
            ours
        )
    else:
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
