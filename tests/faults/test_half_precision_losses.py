"""Losses of float16 and bfloat16 under a loss scale: the incoming gradient is applied before the
gradient is rounded, so what a scale is for survives."""

import pytest
import torch
import torch.nn.functional as F

from mlp_ext import functional, reference

SHAPE = (512, 16)
LOSSES = {
    "cross_entropy": {},
    "mse_loss": {},
    "l1_loss": {},
    "huber_loss": {"delta": 0.5},
    "smooth_l1_loss": {"beta": 0.5},
    "binary_cross_entropy_with_logits": {},
}
dtypes = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
names = pytest.mark.parametrize("name", LOSSES)


def gradient(module, name, x, y, scale, **kwargs):
    leaf = x.clone().requires_grad_()
    loss = getattr(module, name)(leaf, y, **LOSSES[name], **kwargs)
    if kwargs.get("reduction") == "none":
        loss = loss.sum()
    (loss * scale).backward()
    return leaf.grad


@names
@dtypes
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_rounded_once(name, dtype, reduction):
    x, y = torch.randn(SHAPE, dtype=dtype), torch.rand(SHAPE, dtype=dtype)
    y = y.softmax(1) if name == "cross_entropy" else y
    scale = 2.0**12 if reduction == "mean" else 4.0
    found = gradient(functional, name, x, y, scale, reduction=reduction)
    exact = gradient(reference, name, x.double(), y.double(), scale, reduction=reduction)
    assert found.dtype == dtype
    # Half a unit in the last place, and what float32 adds to it.
    eps = torch.finfo(dtype).eps
    small = torch.finfo(dtype).smallest_normal * eps
    torch.testing.assert_close(found.double(), exact, rtol=0.5001 * eps + 1e-4, atol=small)


@dtypes
@pytest.mark.parametrize("shape", [(64, 3), (64, 200), (4, 3, 16, 16), (4, 3, 2, 2)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_class_indices(shape, dtype, channels_last):
    x, weight = torch.randn(shape, dtype=dtype), torch.rand(shape[1], dtype=dtype)
    if channels_last and len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    y = torch.randint(shape[1], (shape[0], *shape[2:]))
    found = gradient(functional, "cross_entropy", x, y, 2.0**12, weight=weight)
    wide = gradient(F, "cross_entropy", x.double(), y, 2.0**12, weight=weight.double())
    eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).smallest_normal
    assert found.stride() == x.stride() and found.dtype == dtype
    torch.testing.assert_close(found.double(), wide, rtol=0.5001 * eps + 1e-4, atol=tiny * eps)


@names
def test_nothing_is_lost_under_a_loss_scale(name):
    """The unscaled gradients of 2^20 elements are below float16's smallest number."""
    x, y = torch.randn(1 << 10, 1 << 10).half(), torch.rand(1 << 10, 1 << 10).half()
    y = y.softmax(1) if name == "cross_entropy" else y
    lost = [
        (gradient(module, name, x, y, 2.0**15) == 0).float().mean().item()
        for module in (functional, F)
    ]
    assert lost[0] <= lost[1] + 1e-3, lost


@names
@dtypes
def test_twice_and_through_create_graph(name, dtype):
    x, y = torch.randn(SHAPE, dtype=dtype), torch.rand(SHAPE, dtype=dtype).softmax(1)
    leaf = x.clone().requires_grad_()
    loss = getattr(functional, name)(leaf, y, **LOSSES[name]) * 2.0**12
    first, second = (torch.autograd.grad(loss, leaf, retain_graph=True)[0] for _ in range(2))
    (third,) = torch.autograd.grad(loss, leaf, create_graph=True)
    assert first.data_ptr() != second.data_ptr() and torch.equal(first, second)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(third, first, rtol=2 * eps, atol=torch.finfo(dtype).smallest_normal)
    assert third.dtype == dtype


@names
@dtypes
def test_compiled(name, dtype):
    x, y = torch.randn(SHAPE, dtype=dtype), torch.rand(SHAPE, dtype=dtype).softmax(1)

    def call(leaf):
        return getattr(functional, name)(leaf, y, **LOSSES[name]) * 2.0**10

    torch._dynamo.reset()
    results = []
    for function in (call, torch.compile(call, backend="aot_eager", fullgraph=True)):
        leaf = x.clone().requires_grad_()
        function(leaf).backward()
        results.append(leaf.grad)
    assert results[1].dtype == dtype
    torch.testing.assert_close(*results)
