"""Dropout in TrainStep: flag, seed, statistics, and that backward uses the mask of forward."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import dtypes
from torch import nn
from train_twins import LAYERS, ROWS, Twins, draw, make, net

from mlp_ext import TrainStep

WIDE = 20_000
cuts = pytest.mark.parametrize("shape", (ROWS, LAYERS), ids=("rows", "layers"))


def dropping(sizes, p=0.4, dtype=torch.float64, activation=nn.Tanh):
    model = net(sizes, activation, dtype=dtype)
    children = []
    for child in model:
        children += [child] + [nn.Dropout(p)] * isinstance(child, activation)
    return nn.Sequential(*children)


def reader(p, width=WIDE, layers=1):
    """(model, step): Linear layers that give ones whatever comes in, each with a Dropout behind it;
    dropped(model) reads the masks off the gradients of the layers above."""
    children = []
    for i in range(layers):
        linear = nn.Linear(1 if i == 0 else width, width, dtype=torch.float64)
        nn.init.zeros_(linear.weight)
        nn.init.ones_(linear.bias)
        children += [linear, nn.Dropout(p)]
    last = nn.Linear(width, 1, dtype=torch.float64)
    nn.init.ones_(last.weight)
    model = nn.Sequential(*children, last)
    sgd = torch.optim.SGD(model.parameters(), lr=0.0)
    return model, TrainStep(model, nn.L1Loss(reduction="sum"), sgd)


def masks(model, step, rows=1):
    """What each Dropout multiplied by: the top one's from the last dW (one row: d loss / d W is the
    layer's input), the others' from the gradient of the bias below them."""
    width = model[-1].in_features
    x = torch.ones(rows, 1, dtype=torch.float64)
    step(x, torch.full((rows, 1), -1e9, dtype=torch.float64), keep_grad=True)
    return model[-1].weight.grad.reshape(width).clone(), model[0].bias.grad.clone()


@pytest.mark.parametrize("p", (0.1, 0.5, 0.75, 0.999))
def test_fraction_and_scale(p):
    model, step = reader(p)
    dropped, through_backward = masks(model, step)
    assert set(dropped.unique().tolist()) == {0.0, 1 / (1 - p)}
    sigma = (p * (1 - p) / WIDE) ** 0.5
    assert abs((dropped == 0).double().mean().item() - p) < 5 * sigma
    assert torch.equal(dropped, through_backward)  # the same mask in both directions
    again, _ = masks(model, step)
    agree = ((again == 0) == (dropped == 0)).double().mean().item()
    expected = p * p + (1 - p) ** 2
    assert abs(agree - expected) < 5 * (expected * (1 - expected) / WIDE) ** 0.5


def correlations(one, other, shifts=(0, 1, 2, 3, 4, 8, 16)):
    """Of two masks, element by element, for some ways to pair their elements."""
    a, b = (m - m.mean() for m in (one.double(), other.double()))
    index = torch.arange(len(a))
    pairings = [index ^ shift for shift in shifts] + [index.roll(shift) for shift in shifts]
    pairings = [pairing for pairing in pairings if pairing.max() < len(a)]
    return [((a * b[p]).mean() / (a.std() * b.std())).item() for p in pairings]


def test_masks_of_two_layers_are_independent():
    """Also when their elements are paired crosswise: (i, i ^ 1), (i, i + 1), ..."""
    width = 1024
    worst = 0.0
    for _ in range(4):
        model, step = reader(0.5, width, layers=2)
        nn.init.eye_(model[2].weight)
        nn.init.zeros_(model[2].bias)
        product, both = masks(model, step)
        assert torch.equal(product, both)
        upper = model[2].bias.grad != 0
        lower = model[2].weight.grad[upper][0] != 0  # a row of dz2^T dropped(y1)
        assert torch.equal(upper & lower, product != 0)
        worst = max(worst, *map(abs, correlations(lower, upper)))
    assert worst < 5.5 / width**0.5, worst


def test_masks_of_neighbouring_rows_and_steps_are_independent():
    model, step = reader(0.5, 4096)
    first, _ = masks(model, step)
    second, _ = masks(model, step)
    worst = max(map(abs, correlations(first != 0, second != 0)))
    worst = max(worst, *map(abs, correlations(first != 0, first != 0)[1:7]))
    assert worst < 5.5 / 4096**0.5, worst


@pytest.mark.parametrize("seed", (1, 2))
def test_same_seed_same_result(seed, threads):
    rows, sizes = ROWS
    results = []
    model = dropping(sizes)
    batches = [draw("classes", rows, sizes) for _ in range(3)]
    for s in (seed, seed, seed + 10):
        twin = copy.deepcopy(model)
        step = TrainStep(twin, F.cross_entropy, torch.optim.SGD(twin.parameters(), 0.1))
        torch.manual_seed(s)
        for x, y in batches:
            step(x, y)
        results.append([p.detach() for p in twin.parameters()])
    assert all(map(torch.equal, results[0], results[1]))
    assert not any(map(torch.equal, results[0], results[2]))


@cuts
def test_the_mask_does_not_depend_on_threads(shape):
    rows, sizes = shape
    results = []
    model = dropping(sizes)
    x, y = draw("classes", rows, sizes)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(5)
        twin = copy.deepcopy(model)
        TrainStep(twin, F.cross_entropy, torch.optim.SGD(twin.parameters(), 0.1))(x, y)
        results.append(list(twin.parameters()))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


@cuts
@dtypes("f64", "f32")
@pytest.mark.parametrize("p", (0.0, 0.4))
def test_inactive_is_no_dropout(shape, p, dtype, threads):
    """In eval, and with p = 0: the very bits of the net without it, and no random number drawn."""
    rows, sizes = shape
    model = dropping(sizes, p, dtype)
    model.train(p == 0)
    bare = nn.Sequential(*(m for m in copy.deepcopy(model) if not isinstance(m, nn.Dropout)))
    steps = [TrainStep(m, F.cross_entropy, torch.optim.Adam(m.parameters())) for m in (model, bare)]
    state = torch.get_rng_state()
    for _ in range(3):
        x, y = draw("classes", rows, sizes, dtype)
        before = torch.get_rng_state()
        assert torch.equal(steps[0](x, y), steps[1](x, y))
        assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(state, torch.get_rng_state())
    assert all(map(torch.equal, model.parameters(), bare.parameters()))


def test_flags_are_read_at_each_call():
    sizes = (7, 64, 64, 3)
    twins = Twins(dropping(sizes, 0.5), F.mse_loss, make("SGD", lr=0.1))
    for module in (twins.model, twins.plain):
        module.eval()
    twins.run("values", 8, sizes, 2)
    x, y = draw("values", 8, sizes)
    expected = F.mse_loss(twins.model(x), y).item()
    twins.model[5].train()
    assert abs(twins.step(x, y).item() - expected) > 1e-6
    twins.model[5].p = 0.0
    expected = F.mse_loss(twins.model(x), y).item()
    assert twins.step(x, y).item() == pytest.approx(expected, rel=1e-12)
    twins.model[5].p = 1.0
    twins.model.zero_grad()
    twins.step(x, y, keep_grad=True)
    top, *below = [m for m in reversed(twins.model) if isinstance(m, nn.Linear)]
    assert top.bias.grad.any() and not top.weight.grad.any()
    assert not any(p.grad.any() for linear in below for p in linear.parameters())


class Mask(nn.Module):
    """Multiplies by what TrainStep's Dropout multiplied by."""

    def forward(self, input):
        return input * self.mask


@cuts
@dtypes("f64", "f32")
@pytest.mark.parametrize("activation", (nn.Tanh, nn.SiLU))
def test_gradients_belong_to_the_mask(shape, dtype, activation, isa):
    """The masks of a batch of one recovered from the gradients, then eager steps with them."""
    torch.set_num_threads(2)
    sizes = shape[1]
    model = dropping(sizes, 0.4, dtype, activation)
    plain = nn.Sequential(*(Mask() if isinstance(m, nn.Dropout) else m for m in model))
    plain = copy.deepcopy(plain)
    step = TrainStep(model, F.mse_loss, torch.optim.SGD(model.parameters(), 0.1))
    x, y = draw("values", 1, sizes, dtype)
    loss = step(x, y, keep_grad=True)
    linears = [m for m in model if isinstance(m, nn.Linear)]
    for i, linear in enumerate(linears[1:]):
        row = linear.weight.grad[linear.bias.grad.abs().argmax()]  # a multiple of the layer's input
        plain[3 * i + 2].mask = (row != 0).to(dtype) / 0.6
    expected = F.mse_loss(plain(x), y)
    expected.backward()
    tolerance = {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {}
    torch.testing.assert_close(loss, expected.detach(), **tolerance)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, **tolerance)


@cuts
def test_gradients_of_a_whole_batch(shape, threads):
    """Finite differences of the loss under one seed, along the gradient."""
    rows, sizes = shape
    model = dropping(sizes, 0.3)
    x, y = draw("values", rows, sizes)
    sgd = torch.optim.SGD(model.parameters(), lr=0.0)
    step = TrainStep(model, F.mse_loss, sgd)

    def loss():
        torch.manual_seed(3)
        return step(x, y, keep_grad=True).item()

    loss()
    grads = [p.grad for p in model.parameters()]
    for p, grad in zip(model.parameters(), grads, strict=True):
        h = 1e-4 / grad.norm().item()
        p.data += h * grad
        above = loss()
        p.data -= 2 * h * grad
        slope = (above - loss()) / (2 * h)
        p.data += h * grad
        assert slope == pytest.approx(grad.square().sum().item(), rel=1e-5)
