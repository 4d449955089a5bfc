"""Tensors with a __torch_dispatch__ of their own (DTensor, quantized tensors) are handed PyTorch's
operators, as through F.linear: they know no others."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map

import mlp_ext
from mlp_ext import functional


class Wrapped(torch.Tensor):
    """Holds a tensor, and takes only operators of aten; notes them."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    seen: list = []

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, dtype=held.dtype, requires_grad=held.requires_grad
        )

    def __init__(self, held):
        self.held = held

    def __repr__(self):
        return "Wrapped"

    def __tensor_flatten__(self):
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(held, context, size, stride):
        return Wrapped(held["held"])

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        assert function.namespace in ("aten", "prims"), function
        cls.seen.append(function)
        args, kwargs = tree_map(lambda t: getattr(t, "held", t), (args, kwargs or {}))
        wrap = lambda t: cls(t) if isinstance(t, torch.Tensor) else t  # noqa: E731
        return tree_map(wrap, function(*args, **kwargs))


def leaves():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(s, generator=generator) for s in ((5, 4), (6, 4), (6,), (3, 6), (3,))]


TARGET = torch.arange(5) % 3
VALUES = (torch.arange(20.0) % 2).view(5, 4)
CALLS = {
    "linear": (
        lambda x, w, b, *rest: functional.linear(x, w, b, activation="gelu"),
        lambda x, w, b, *rest: F.gelu(F.linear(x, w, b)),
    ),
    "mlp": (
        lambda x, w, b, v, c: functional.mlp(x, [w, v], [b, c]),
        lambda x, w, b, v, c: F.linear(F.relu(F.linear(x, w, b)), v, c),
    ),
    "cross_entropy": (
        lambda x, *rest: functional.cross_entropy(x, TARGET),
        lambda x, *rest: F.cross_entropy(x, TARGET),
    ),
    "mse_loss": (
        lambda x, *rest: functional.mse_loss(x, VALUES),
        lambda x, *rest: F.mse_loss(x, VALUES),
    ),
    "binary_cross_entropy_with_logits": (
        lambda x, *rest: functional.binary_cross_entropy_with_logits(x, VALUES),
        lambda x, *rest: F.binary_cross_entropy_with_logits(x, VALUES),
    ),
}
calls = pytest.mark.parametrize("ours, plain", CALLS.values(), ids=CALLS)


def unwrapped(tensor):
    return getattr(tensor, "held", tensor)


@calls
@pytest.mark.parametrize("which", [0, 1, 2], ids=["input", "weight", "bias"])
def test_forward_and_backward(ours, plain, which):
    results = []
    for function in (ours, plain):
        tensors = leaves()
        tensors[which] = Wrapped(tensors[which])
        tensors = [t.detach().requires_grad_() for t in tensors]
        output = function(*tensors)
        output.sum().backward()
        results.append([unwrapped(output), *(unwrapped(t.grad) for t in tensors)])
    torch.testing.assert_close(*results)


@calls
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(ours, plain, mode):
    results = []
    for function in (ours, plain):
        with mode():
            results.append(unwrapped(function(*map(Wrapped, leaves()))))
    torch.testing.assert_close(*results)
    with mode():
        tensors = list(map(Wrapped, leaves()))
    with mode():
        torch.testing.assert_close(unwrapped(ours(*tensors)), results[1])


@calls
def test_autocast(ours, plain):
    results = []
    for function in (ours, plain):
        with torch.autocast("cpu", torch.bfloat16):
            results.append(unwrapped(function(*map(Wrapped, leaves()))))
    torch.testing.assert_close(*results, rtol=0.02, atol=0.02)


@calls
def test_compile(ours, plain):
    """The compiler takes the wrapper apart; the graph is over what it holds."""
    tensors = [Wrapped(t.requires_grad_()) for t in leaves()]
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(unwrapped(compiled(*tensors)), unwrapped(plain(*tensors)))


def test_an_optimizer_over_them():
    """torch's own step runs for a parameter that the kernels cannot read."""
    results = []
    for module in (mlp_ext.optim, torch.optim):
        parameters = [torch.nn.Parameter(Wrapped(t)) for t in leaves()]
        optimizer = module.Adam(parameters, lr=0.1, foreach=False)
        for _ in range(3):
            optimizer.zero_grad()
            (parameters[0] * parameters[0]).sum().backward()
            optimizer.step()
        results.append(parameters[0].held)
    torch.testing.assert_close(*results)
