"""What explain says of subclasses, and of an activation that cannot be fused."""

import torch
from torch import nn

import mlp_ext


class Layer(mlp_ext.nn.LinearActivation):
    pass


class Another(mlp_ext.nn.LinearReLU):
    pass


class Rectifier(nn.ReLU):
    def forward(self, input):
        return torch.relu(input)


def how(*children):
    return [report.how for report in mlp_ext.explain(mlp_ext.nn.Sequential(*children))]


def test_the_base_is_named():
    assert how(Layer(2, 3, activation="relu")) == [
        "fused by itself with its own relu "
        "(not in a stack: Layer is a subclass of LinearActivation)"
    ]
    assert "Another is a subclass of LinearReLU)" in how(Another(2, 3))[0]


def test_an_activation_that_runs_by_itself():
    assert how(nn.Linear(2, 3), Rectifier(), nn.Linear(3, 2)) == [
        "fused into a stack of 1 layer; 1 (Rectifier), a subclass of ReLU, runs by itself",
        "fused into a stack of 1 layer",
    ]
    patched, hooked = nn.ReLU(), nn.ReLU()
    patched.forward = torch.tanh
    hooked.register_forward_hook(lambda *args: None)
    assert "1 (ReLU), which has a forward of its own, runs by" in how(nn.Linear(2, 3), patched)[0]
    assert "1 (ReLU), which has a hook, runs by itself" in how(nn.Linear(2, 3), hooked)[0]
    assert "1 (ELU), whose arguments are not the default" in how(nn.Linear(2, 3), nn.ELU(2.0))[0]
    assert how(nn.Linear(2, 3), nn.ReLU(), patched)[0].endswith("a stack of 1 layer")
    assert how(nn.Linear(2, 3), nn.Flatten())[0].endswith("a stack of 1 layer")
