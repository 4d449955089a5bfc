"""What a TrainStep writes to when other threads give its tensors other memory: what it has read of
parameters, states and statistics stays together, and is kept until the step is done."""

import gc
import sys
import threading
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset
from train_twins import Twins, draw, make, net

import mlp_ext
from mlp_ext import TrainStep
from mlp_ext.data import DataLoader

SIZES = (9, 12, 3)


def in_background(work):
    """Runs work() again and again; returns a function that ends it and raises what it raised."""
    done, errors = threading.Event(), []

    def loop():
        try:
            while not done.is_set():
                work()
                time.sleep(0.001)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=loop)
    thread.start()

    def end():
        done.set()
        thread.join()
        assert not errors, errors

    return end


def python_calls(function, *arguments):
    """What the function returns, and the code of the Python functions that run in it, but for
    finalizers."""
    called, before = [], sys.getprofile()
    gc.disable()
    sys.setprofile(lambda frame, event, _: event == "call" and called.append(frame.f_code))
    try:
        result = function(*arguments)
    finally:
        sys.setprofile(before)
        gc.enable()
    return result, called


@pytest.mark.parametrize("by_epoch", (True, False), ids=("epoch", "call"))
def test_parameters_get_other_memory_meanwhile(by_epoch):
    """`p.data = ...` in another thread must not free what the kernels write to."""
    model = net((10, 1024, 1024, 3), dtype=torch.float32)
    step = TrainStep(model, F.cross_entropy, torch.optim.SGD(model.parameters(), lr=1e-3))
    weight = step.model[2].weight
    end = in_background(lambda: setattr(weight, "data", weight.data.clone()))
    x, y = draw("classes", 64 * 150, (10, 3), torch.float32)
    try:
        if by_epoch:
            step.epoch(DataLoader(TensorDataset(x, y), 64))
        else:
            for batch in zip(x.split(64), y.split(64), strict=True):
                step(*batch)
    finally:
        end()
    assert all(p.isfinite().all() for p in step.model.parameters())


@pytest.mark.parametrize("name", ("SGD", "Adam", "NAdam"))
def test_no_python_code_runs_in_a_step(name):
    """In Python code other threads and signal handlers get their turn: between the reading of a
    parameter's memory and the step that keeps it alive, and with the step's lock held."""
    children = nn.Linear(9, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 3)
    model = nn.Sequential(*children, nn.LayerNorm(3))
    options = {"momentum": 0.9} if name == "SGD" else {}
    optimizer = getattr(mlp_ext.optim, name)(model.parameters(), lr=1e-3, **options)
    loss_fn = nn.CrossEntropyLoss(torch.rand(3))
    step = TrainStep(model, loss_fn, optimizer, clip_grad_norm=1.0)
    x, y = draw("classes", 6, SIZES, torch.float32)

    def give_other_memory():
        for t in (*model.parameters(), *model.buffers()):
            t.data = t.data.clone()

    def change_the_rate():
        optimizer.param_groups[0]["lr"] = 2e-3

    def replace_states():
        optimizer.load_state_dict(optimizer.state_dict())

    def empty_states():
        for state in optimizer.state.values() if name == "SGD" else ():
            state.clear()

    step(x, y)  # makes the states, in Python
    changes = give_other_memory, change_the_rate, replace_states, empty_states
    for change in (lambda: None, *changes):
        change()
        loss, called = python_calls(step._core.call, x, y, True)
        assert type(loss) is torch.Tensor
        assert called == [], change


def test_memory_of_another_layout():
    """A side of length 1 may have any stride, and the optimizer's state has the parameter's."""
    model = nn.Linear(5, 1, dtype=torch.float64)
    model.weight = nn.Parameter(torch.randn(5, 1, dtype=torch.float64).t())
    assert model.weight.stride() == (1, 1) and model.weight.is_contiguous()
    twins = Twins(nn.Sequential(model), F.mse_loss, make("SGD", lr=0.1, momentum=0.9))
    for _ in range(3):
        twins.both(*draw("values", 4, (5, 1)), keep_grad=True)
    twins.check()


def test_states_are_made_where_torch_makes_them():
    """In a group without momentum there are none, nor for parameters that are not the model's."""
    model, stranger = net(SIZES), nn.Parameter(torch.zeros(2))
    last = {"params": list(model[2].parameters()), "momentum": 0.9}
    sgd = torch.optim.SGD([{"params": list(model[0].parameters())}, last], lr=0.1)
    step = TrainStep(model, F.cross_entropy, sgd)
    sgd.add_param_group({"params": [stranger]})
    step(*draw("classes", 4, SIZES))
    assert set(sgd.state) == set(model[2].parameters())
