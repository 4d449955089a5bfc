"""What a TrainStep writes to when other threads give its tensors other memory: what it has read of
parameters, states and statistics stays together, and is kept until the step is done."""

import sys
import threading
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset
from train_twins import draw, net

import mlp_ext
from mlp_ext import TrainStep
from mlp_ext.data import DataLoader


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
    step = TrainStep(model, F.cross_entropy, optimizer, clip_grad_norm=1.0)
    x, y = draw("classes", 6, (9, 3), torch.float32)

    def give_other_memory():
        for t in (*model.parameters(), *model.buffers()):
            t.data = t.data.clone()

    def change_the_rate():
        optimizer.param_groups[0]["lr"] = 2e-3

    def replace_states():
        optimizer.load_state_dict(optimizer.state_dict())

    called = []

    def note(frame, event, _):
        if event == "call":
            called.append(frame.f_code)

    step(x, y)  # makes the states, in Python
    for change in (lambda: None, give_other_memory, change_the_rate, replace_states):
        change()
        sys.setprofile(note)
        try:
            loss = step._compiled(x, y, True)
        finally:
            sys.setprofile(None)
        assert type(loss) is torch.Tensor
    assert called == []
