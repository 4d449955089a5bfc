"""Tensor subclasses and function modes: they see PyTorch's own functions, those that a user would
have called, since no library knows ours."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

import mlp_ext
from mlp_ext import functional

ACTIVATIONS = {
    None: lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "softplus": F.softplus,
}


class Logged(torch.Tensor):
    seen: list = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append((func, len(args), sorted(kwargs or {})))
        return super().__torch_function__(func, types, args, kwargs or {})


class Log(TorchFunctionMode):
    def __init__(self):
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append((func, len(args), sorted(kwargs or {})))
        return func(*args, **(kwargs or {}))


def seen_by_subclass(call, *tensors):
    Logged.seen = []
    output = call(*(t.as_subclass(Logged) for t in tensors))
    seen = [entry for entry in Logged.seen if entry[0].__name__ != "__get__"]
    return type(output), output.as_subclass(torch.Tensor), seen


def seen_by_mode(call, *tensors):
    with Log() as log:
        output = call(*tensors)
    seen = [entry for entry in log.seen if entry[0].__name__ != "__get__"]
    return type(output), output, seen


watchers = pytest.mark.parametrize("watch", [seen_by_subclass, seen_by_mode])


def same(watch, ours, torchs, *tensors):
    found, expected = watch(ours, *tensors), watch(torchs, *tensors)
    assert found[0] is expected[0] and found[2] == expected[2]
    assert torch.equal(found[1], expected[1])


@watchers
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_layers(name, watch):
    def plain(x, w, b):
        return ACTIVATIONS[name](F.linear(x, w, b))

    def stack(x, w, b):
        return functional.mlp(x, [w], [b], final_activation=name)

    tensors = torch.randn(2, 5), torch.randn(3, 5), torch.randn(3)
    same(watch, lambda *t: functional.linear(*t, activation=name), plain, *tensors)
    same(watch, stack, plain, *tensors)
    assert set(ACTIVATIONS) == {None, *functional.ACTIVATIONS}


@watchers
@pytest.mark.parametrize(
    "name",
    [
        "cross_entropy", "mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss",
        "binary_cross_entropy_with_logits",
    ],
)  # fmt: skip
def test_losses(name, watch):
    x, y = torch.randn(4, 5), torch.rand(4, 5)
    same(watch, getattr(functional, name), getattr(F, name), x, y)
    modules = {
        "cross_entropy": "CrossEntropyLoss", "mse_loss": "MSELoss", "l1_loss": "L1Loss",
        "huber_loss": "HuberLoss", "smooth_l1_loss": "SmoothL1Loss",
        "binary_cross_entropy_with_logits": "BCEWithLogitsLoss",
    }  # fmt: skip
    same(watch, getattr(mlp_ext.nn, modules[name])(), getattr(nn, modules[name])(), x, y)


class Packed(torch.Tensor):
    """As quantized weights are: knows F.linear, and nothing else."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            return F.linear(args[0], args[1].real_weight, *args[2:])
        if func.__name__ == "__get__":
            return super().__torch_function__(func, types, args, kwargs or {})
        raise NotImplementedError(f"{func} on Packed")


def test_a_weight_that_knows_linear_alone():
    w, b, x = torch.randn(3, 5), torch.randn(3), torch.randn(2, 5)
    packed = torch.empty(3, 5).as_subclass(Packed)
    packed.real_weight = w
    assert torch.equal(functional.linear(x, packed, b), F.linear(x, w, b))
    assert torch.equal(functional.linear_relu(x, packed, b), F.relu(F.linear(x, w, b)))
    assert torch.equal(functional.mlp(x, [packed], [b]), F.linear(x, w, b))


def test_fx_records_functions_that_tools_know():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 5))

        def forward(self, x, y):
            return functional.cross_entropy(functional.linear_relu(x, self.weight), y)

    graph = torch.fx.symbolic_trace(Net()).graph
    assert [n.target for n in graph.nodes if n.op == "call_function"] == [
        F.linear, F.relu, F.cross_entropy,
    ]  # fmt: skip


def test_a_default_device_is_no_reason():
    """torch.set_default_device is a mode too, but one that looks only at what makes tensors."""
    x, w, y = torch.randn(2, 5), torch.randn(3, 5, requires_grad=True), torch.rand(2, 3)
    with torch.device("cpu"):
        output = functional.linear_relu(x, w)
        loss = functional.mse_loss(output, y)
    assert output.grad_fn.name() == "MlpBackward"
    assert loss.grad_fn.name() == "ElementwiseLossBackward"
    with torch.device("cpu"), Log() as log:
        functional.linear_relu(x, w)
    assert [entry[0] for entry in log.seen] == [F.linear, F.relu]
    with torch.device("cpu"):
        assert type(functional.linear_relu(x.as_subclass(Logged), w)) is Logged
