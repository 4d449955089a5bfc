"""Tensors made under inference_mode in a call that records: PyTorch's error where PyTorch would
save them, and none where it would not."""

import pytest
import torch
import torch.nn.functional as F

from mlp_ext import functional


def inference(*shape, indices=None):
    with torch.inference_mode():
        return torch.randint(indices, shape) if indices else torch.rand(shape)


def outcome(call):
    try:
        result = call()
        result.sum().backward()
        return "no error"
    except RuntimeError as error:
        return str(error)[:40]


NAMES = ("x", "w", "b", "v", "c")
SHAPES = {"x": (4, 5), "w": (6, 5), "b": (6,), "v": (3, 6), "c": (3,)}


@pytest.mark.parametrize("made_so", NAMES)
def test_of_a_stack(made_so):
    """Each tensor of two layers, with every choice of the others that want a gradient."""
    for trainable in range(1, 32):
        check_stack(made_so, trainable)


def check_stack(made_so, trainable):
    tensors = {}
    for i, name in enumerate(NAMES):
        if name == made_so:
            tensors[name] = inference(*SHAPES[name])
        else:
            tensors[name] = torch.rand(SHAPES[name]).requires_grad_(bool(trainable >> i & 1))
    if not any(t.requires_grad for t in tensors.values()):
        return

    def plain(x, w, b, v, c):
        return F.linear(torch.tanh(F.linear(x, w, b)), v, c)

    def ours(x, w, b, v, c):
        return functional.mlp(x, [w, v], [b, c], activation="tanh")

    found, expected = outcome(lambda: ours(**tensors)), outcome(lambda: plain(**tensors))
    # The hidden layer's output is ours to keep, and made outside of inference mode; PyTorch makes
    # it inside, of inference tensors alone, and cannot save it.
    assert found == expected or (made_so in "xwb" and found == "no error")


@pytest.mark.parametrize("made_so", range(3))
@pytest.mark.parametrize(
    "name", ["cross_entropy", "smoothed", "indices", "smoothed indices", "mse_loss", "bce"]
)
def test_of_a_loss(name, made_so):
    def tensors():
        y = torch.rand(4, 5)
        x, weight = torch.rand(4, 5).requires_grad_(), torch.rand(4, 5)
        if name not in ("mse_loss", "bce"):
            weight = torch.rand(5)
        if "indices" in name:
            y = torch.randint(5, (4,))
        made = [x, y, weight]
        with torch.inference_mode():
            made[made_so] = made[made_so].detach().clone()
        return made

    def call(module, x, y, weight):
        if name == "bce":
            return module.binary_cross_entropy_with_logits(x, y, weight)
        if name == "mse_loss":
            return module.mse_loss(x, y, weight=weight)
        smoothing = 0.3 if "smoothed" in name else 0.0
        return module.cross_entropy(x, y, weight, label_smoothing=smoothing)

    x, y, weight = tensors()
    found, expected = (outcome(lambda m=m: call(m, x, y, weight)) for m in (functional, F))
    assert found == expected


def test_the_gradient_through_a_frozen_layer_is_right():
    w, b = inference(6, 5), inference(6)
    v = torch.rand(3, 6, requires_grad=True)
    x = torch.rand(4, 5)
    results = []
    for call in (
        lambda: functional.mlp(x, [w, v], [b, None], activation="relu"),
        lambda: F.linear(F.relu(F.linear(x, w.clone(), b.clone())), v),
    ):
        y = call().square().sum()
        results.append(torch.autograd.grad(y, v))
    torch.testing.assert_close(*results)
