"""Tensors whose memory was freed or cut short (`untyped_storage().resize_()`, as FSDP and code that
offloads do it): a RuntimeError, whichever tensor it is and whenever it happens, and never a crash
or a bias that counts as none."""

import pytest
import torch

import mlp_ext
from mlp_ext import functional


def free(t, left=0):
    t.untyped_storage().resize_(left)


def operands(dtype=torch.float32):
    return {
        "input": torch.randn(8, 6, dtype=dtype),
        "weight": torch.randn(4, 6, dtype=dtype),
        "bias": torch.randn(4, dtype=dtype),
    }


# Ours, or that of an operator of PyTorch's that makes a view.
FREED = pytest.raises(RuntimeError, match="not allocated|out of bounds for storage")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("what", ["input", "weight", "bias"])
@pytest.mark.parametrize("left", [0, 6])
def test_of_a_layer(what, dtype, left):
    for activation in (None, "relu", "gelu"):
        tensors = operands(dtype)
        free(tensors[what], left)
        with FREED:
            functional.linear(**tensors, activation=activation)
        for t in tensors.values():
            t.requires_grad_()
        with FREED:
            functional.linear(**tensors, activation=activation)


@pytest.mark.parametrize(
    "form",
    [
        lambda t: t.t().contiguous().t(),
        lambda t: torch.cat([t, t])[len(t) :],  # an offset
        lambda t: t[:1].expand(t.shape),
        lambda t: t.repeat_interleave(2, -1)[..., ::2],
        lambda t: torch.stack([t, t], 1).transpose(0, 1)[0],
    ],
)
@pytest.mark.parametrize("what", ["input", "weight"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_however_it_lies(what, form, dtype):
    tensors = operands(dtype)
    tensors[what] = form(tensors[what])
    functional.linear(**tensors)
    free(tensors[what])
    with FREED:
        functional.linear(**tensors)


def test_of_an_input_of_more_dimensions():
    x = torch.randn(3, 4, 6).transpose(0, 1)
    free(x)
    with FREED:
        functional.mlp(x, [torch.randn(2, 6)], None)


def test_what_is_there_is_enough():
    """The storage may be as short as the elements reach, and of no elements none is asked."""
    x = torch.randn(8, 6)[:4, :3]
    free(x, 4 * (3 * 6 + 3))
    functional.linear(x, torch.randn(2, 3))
    empty = torch.randn(0, 6)
    free(empty)
    assert functional.linear(empty, torch.randn(2, 6)).shape == (0, 2)


@pytest.mark.parametrize("what", ["input", "first weight", "second weight", "output", "gradient"])
def test_between_forward_and_backward(what):
    x = torch.randn(8, 6, requires_grad=True)
    w, v = torch.randn(5, 6, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    y = functional.mlp(x, [w, v], None, final_activation="sigmoid")
    gradient = torch.ones_like(y)
    freed = {
        "input": x, "first weight": w, "second weight": v, "output": y, "gradient": gradient,
    }[what]  # fmt: skip
    free(freed)
    with FREED:
        y.backward(gradient)


def test_what_backward_does_not_read_may_be_freed():
    """As FSDP does with a layer whose input needs no gradient, and with every bias."""
    x, w = torch.randn(8, 6), torch.randn(3, 6, requires_grad=True)
    b = torch.randn(3, requires_grad=True)
    y = functional.linear_relu(x, w, b)
    expected = torch.autograd.grad(y.sum(), [w, b], retain_graph=True)
    free(w)
    free(b)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), [w, b]), expected)


LOSSES = {
    "cross_entropy": lambda x, y: functional.cross_entropy(x, y),
    "mse_loss": lambda x, y: functional.mse_loss(x, y),
    "l1_loss": lambda x, y: functional.l1_loss(x, y, reduction="none"),
    "huber_loss": lambda x, y: functional.huber_loss(x, y),
    "smooth_l1_loss": lambda x, y: functional.smooth_l1_loss(x, y),
    "bce": lambda x, y: functional.binary_cross_entropy_with_logits(x, y),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("what", [0, 1])
@pytest.mark.parametrize("left", [0, 8])
@pytest.mark.parametrize("turned", [False, True])
def test_of_a_loss(name, dtype, what, left, turned):
    shape = (5, 16)
    tensors = [torch.randn(shape, dtype=dtype), torch.rand(shape, dtype=dtype)]
    if turned:
        tensors = [t.t().contiguous().t() for t in tensors]
    tensors[0].requires_grad_()
    free(tensors[what], left)
    with FREED:
        LOSSES[name](*tensors)


@pytest.mark.parametrize("shape", [(5, 3), (5, 20), (2, 3, 4, 4), (2, 3, 2)])
@pytest.mark.parametrize("what", ["logits", "indices", "weight"])
def test_of_class_indices_and_weights(shape, what):
    tensors = {
        "logits": torch.randn(shape),
        "indices": torch.randint(3, (shape[0], *shape[2:])),
        "weight": torch.rand(shape[1]),
    }
    free(tensors[what])
    with FREED:
        functional.cross_entropy(tensors["logits"], tensors["indices"], tensors["weight"])


@pytest.mark.parametrize("what", ["weight", "pos_weight"])
def test_of_the_weights_of_binary_cross_entropy(what):
    x, y = torch.randn(5, 3), torch.rand(5, 3)
    weights = {"weight": torch.rand(3), "pos_weight": torch.rand(3)}
    free(weights[what])
    with FREED:
        functional.binary_cross_entropy_with_logits(x, y, **weights)


def test_of_the_gradient_of_a_loss():
    x = torch.randn(5, 3, requires_grad=True)
    loss = functional.mse_loss(x, torch.randn(5, 3))
    gradient = torch.ones(())
    free(gradient)
    with FREED:
        loss.backward(gradient)


def test_of_a_fused_model():
    model = mlp_ext.fuse(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()))
    free(model[0].bias)
    with FREED:
        model(torch.randn(2, 4))
