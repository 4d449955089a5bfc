"""nn.Module.__getattr__ patched: what it gives for `self.weight` is what a layer computes with."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mlp_ext


@pytest.fixture
def doubled(monkeypatch):
    """Every weight is twice what it is."""
    own = nn.Module.__getattr__

    def patched(self, name):
        found = own(self, name)
        return found * 2 if name == "weight" else found

    def patch():
        monkeypatch.setattr(nn.Module, "__getattr__", patched)
        return monkeypatch

    return patch


def models():
    plain = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    yield plain, mlp_ext.fuse(copy.deepcopy(plain))
    for kind in (mlp_ext.nn.Linear, mlp_ext.nn.LinearReLU):
        ours = kind(4, 3)
        theirs = nn.Sequential(nn.Linear(4, 3), *[nn.ReLU()] * (kind is mlp_ext.nn.LinearReLU))
        theirs[0].load_state_dict(ours.state_dict())
        yield theirs, ours


def test_layers(doubled):
    x = torch.randn(8, 4)
    pairs = list(models())
    before = [ours(x) for _, ours in pairs]
    patch = doubled()
    for theirs, ours in pairs:
        torch.testing.assert_close(ours(x), theirs(x))
    assert "__getattr__" in str(mlp_ext.explain(pairs[0][1]))
    patch.undo()
    for (_, ours), output in zip(pairs, before, strict=True):
        assert torch.equal(ours(x), output)


def test_train_step(doubled):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    step = mlp_ext.TrainStep(model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.1))
    step(x, y)
    before = copy.deepcopy(model.state_dict())
    patch = doubled()
    with pytest.raises(RuntimeError, match="__getattr__ is patched"):
        step(x, y)
    patch.undo()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    step(x, y)
