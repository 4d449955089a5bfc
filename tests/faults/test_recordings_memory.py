"""TrainStep's way on CUDA, tried on the CPU: memory that is freed, tensors that are swapped, and
what keeps what alive."""

import copy
import gc
import sys
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mlp_ext import TrainStep

sys.path.append(str(Path(__file__).resolve().parents[1] / "cuda"))
from graphed_on_cpu import take_that_way  # noqa: E402


@pytest.fixture(autouse=True)
def recorded(monkeypatch):
    take_that_way(monkeypatch)


def make():
    norms = nn.BatchNorm1d(8), nn.LayerNorm(8)
    model = nn.Sequential(nn.Linear(5, 8), *norms, nn.ReLU(), nn.Linear(8, 3)).double()
    return model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def draw():
    return torch.randn(6, 5).double(), torch.randint(3, (6,))


def loop(model, optimizer, x, y):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


FREED = {
    "x": lambda model, loss_fn, x, y: x,
    "y": lambda model, loss_fn, x, y: y,
    "a weight": lambda model, loss_fn, x, y: model[4].weight,
    "a bias": lambda model, loss_fn, x, y: model[0].bias,
    "a norm's weight": lambda model, loss_fn, x, y: model[2].weight,
    "a buffer": lambda model, loss_fn, x, y: model[1].running_var,
    "the loss's weight": lambda model, loss_fn, x, y: loss_fn.weight,
}


@pytest.mark.parametrize("size", [0, 8])
@pytest.mark.parametrize("what", FREED)
def test_freed_and_cut_memory_raises(what, size):
    model, optimizer = make()
    loss_fn = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]).double())
    step = TrainStep(model, loss_fn, optimizer)
    step(*draw())
    batch = draw()
    tensor = FREED[what](model, loss_fn, *batch)
    others = [p for p in model.parameters() if p is not tensor]
    before = copy.deepcopy(others)
    tensor.untyped_storage().resize_(size)
    with pytest.raises(RuntimeError, match="freed or cut"):
        step(*batch)
    torch.testing.assert_close(others, before, rtol=0, atol=0)


@pytest.mark.parametrize("change", ["load_state_dict", "assign", "swap_tensors"])
def test_other_tensors_while_a_step_lives(change):
    model, optimizer = make()
    twin = copy.deepcopy(model)
    of_twin = torch.optim.SGD(twin.parameters(), 0.1, momentum=0.9)
    step = TrainStep(model, F.cross_entropy, optimizer)
    for _ in range(2):
        batch = draw()
        step(*batch)
        loop(twin, of_twin, *batch)
        for each, its in ((model, optimizer), (twin, of_twin)):
            saved = {key: value * 0.5 for key, value in each.state_dict().items()}
            if change == "swap_tensors":
                weight = nn.Parameter(each[0].weight.detach() * 0.5)
                torch.utils.swap_tensors(each[0].weight, weight)
            else:
                each.load_state_dict(saved, assign=change == "assign")
            if change == "assign":
                its.param_groups[0]["params"] = list(each.parameters())
    torch.testing.assert_close(model.state_dict(), twin.state_dict())


def test_a_head_that_was_replaced():
    """Its old parameters stay in the optimizer, with a gradient: neither moves them."""
    model, optimizer = make()
    twin = copy.deepcopy(model)
    of_twin = torch.optim.SGD(twin.parameters(), 0.1, momentum=0.9)
    step = TrainStep(model, F.cross_entropy, optimizer)
    batch, head = draw(), nn.Linear(8, 3).double()
    step(*batch, keep_grad=True)
    loop(twin, of_twin, *batch)
    old = model[4].weight, twin[4].weight
    for each, its in ((model, optimizer), (twin, of_twin)):
        each[4] = copy.deepcopy(head)
        its.add_param_group({"params": list(each[4].parameters())})
    for _ in range(2):
        batch = draw()
        step(*batch)
        loop(twin, of_twin, *batch)
    torch.testing.assert_close(model.state_dict(), twin.state_dict())
    torch.testing.assert_close(*old)


def test_a_step_that_its_model_refers_to_is_collected():
    model, optimizer = make()
    model.trainer = [TrainStep(model, F.cross_entropy, optimizer)]
    model.trainer[0](*draw())
    gone = weakref.ref(model)
    del model, optimizer
    gc.collect()
    assert gone() is None
