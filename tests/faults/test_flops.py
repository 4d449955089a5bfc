"""What torch.utils.flop_counter counts for our operators: what it counts for PyTorch's."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import mlp_ext
from mlp_ext import functional


def counted(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def layers(kind=nn):
    torch.manual_seed(0)
    return [kind.Linear(20, 30), nn.ReLU(), kind.Linear(30, 7), nn.Tanh(), kind.Linear(7, 2)]


MODELS = {
    "Linear": lambda: nn.Sequential(*layers(mlp_ext.nn)),
    "Sequential": lambda: mlp_ext.nn.Sequential(*layers()),
    "fuse": lambda: mlp_ext.fuse(nn.Sequential(*layers())),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("shape", [(8, 20), (2, 3, 20), (20,)])
def test_of_models(kind, shape):
    plain, ours, x = nn.Sequential(*layers()), MODELS[kind](), torch.ones(shape)

    def without_grad(model):
        with torch.no_grad():
            model(x)

    assert counted(lambda: without_grad(ours)) == counted(lambda: without_grad(plain)) > 0
    both = [counted(lambda model=model: model(x).sum().backward()) for model in (ours, plain)]
    assert both[0] == both[1] > 0


@pytest.mark.parametrize("wanted", range(1, 32))
def test_of_any_gradients(wanted):
    """Input, weights and a bias in each combination, in a stack of two."""
    tensors = torch.ones(8, 5), torch.ones(6, 5), torch.ones(6), torch.ones(3, 6), torch.ones(3)
    for i, t in enumerate(tensors):
        t.requires_grad_(bool(wanted >> i & 1))
    x, w, b, v, c = tensors

    def ours():
        functional.mlp(x, [w, v], [b, c], activation="tanh").sum().backward()

    def plain():
        nn.functional.linear(torch.tanh(nn.functional.linear(x, w, b)), v, c).sum().backward()

    assert counted(ours) == counted(plain)


def test_of_part_of_the_gradients():
    w, v = torch.ones(6, 5, requires_grad=True), torch.ones(3, 6, requires_grad=True)
    x = torch.ones(8, 5)

    def ours(inputs):
        torch.autograd.grad(functional.mlp(x, [w, v], None).sum(), inputs)

    def plain(inputs):
        y = nn.functional.linear(torch.relu(nn.functional.linear(x, w)), v)
        torch.autograd.grad(y.sum(), inputs)

    for inputs in ([w], [v], [w, v]):
        assert counted(lambda f=inputs: ours(f)) == counted(lambda f=inputs: plain(f))


def test_losses_count_for_nothing():
    x, y = torch.randn(4, 5, requires_grad=True), torch.rand(4, 5)
    for name in ("cross_entropy", "mse_loss"):
        assert counted(lambda name=name: getattr(functional, name)(x, y).backward()) == 0


def test_of_a_compiled_model():
    plain, ours, x = nn.Sequential(*layers()), MODELS["fuse"](), torch.ones(8, 20)
    compiled = [torch.compile(model, backend="aot_eager") for model in (ours, plain)]
    both = [counted(lambda model=model: model(x).sum().backward()) for model in compiled]
    assert both[0] == both[1] > 0
