"""TrainStep with products of bfloat16: as accurate as autocast; float32 elsewhere."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import activations
from torch import nn
from train_twins import draw, net
from twins import ACTIVATION_MODULES

import mlp_ext
from mlp_ext import TrainStep

SHAPES = ((24, (9, 14, 3)), (300, (33, 40, 20, 5)), (60, (400, 350, 33, 5)))
shapes = pytest.mark.parametrize("shape", SHAPES, ids=("small", "rows", "layers"))
HAS_PRODUCTS = "avx512_bf16" in mlp_ext.cpu.supported_isas()


def gradients(model, x, y, loss_fn, way):
    """All gradients of a batch, in float64, and the loss."""
    model = copy.deepcopy(model)
    if way == "step":
        sgd = torch.optim.SGD(model.parameters(), lr=0.0)
        step = TrainStep(model, loss_fn, sgd, compute_dtype=torch.bfloat16)
        loss = step(x, y, keep_grad=True)
    else:
        if way == "float64":
            model, x = model.double(), x.double()
            y = y.double() if y.is_floating_point() else y
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
            loss = loss_fn(model(x), y)
        loss.backward()
    flat = torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])
    return flat, loss.item()


def check(model, x, y, loss_fn=F.cross_entropy):
    """Twice autocast's error, and as far from float32 as rounding to 8 bits makes it."""
    exact, loss = gradients(model, x, y, loss_fn, "float64")
    theirs, their_loss = gradients(model, x, y, loss_fn, "autocast")
    ours, our_loss = gradients(model, x, y, loss_fn, "step")
    error, their_error = (ours - exact).norm().item(), (theirs - exact).norm().item()
    assert error <= 2 * their_error + 1e-6 * exact.norm().item(), (error, their_error)
    assert abs(our_loss - loss) <= 2 * abs(their_loss - loss) + 0.02 * abs(loss)
    return error / exact.norm().item()


@shapes
@pytest.mark.parametrize("frozen", (0, 2), ids=("all", "frozen"))
def test_gradients(shape, frozen, threads):
    rows, sizes = shape
    model = net(sizes, nn.ReLU, dtype=torch.float32)
    for parameter in list(model.parameters())[:frozen]:
        parameter.requires_grad_(False)
    error = check(model, *draw("classes", rows, sizes, torch.float32))
    assert (1e-4 < error < 0.2) if HAS_PRODUCTS else error < 1e-5


@activations()
def test_activations(activation):
    module = ACTIVATION_MODULES[activation] if activation else nn.Identity
    model = net((20, 33, 17, 4), module, dtype=torch.float32, last=module())
    check(model, *draw("values", 50, (20, 4), torch.float32), F.mse_loss)


def test_with_norms(threads):
    model = nn.Sequential(
        *(nn.LayerNorm(20), nn.Linear(20, 33), nn.BatchNorm1d(33), nn.ReLU(), nn.Linear(33, 40)),
        *(nn.Tanh(), nn.LayerNorm(40), nn.Linear(40, 4)),
    )
    check(model, *draw("classes", 300, (20, 4), torch.float32))


def test_dropout_is_that_of_float32():
    """The same masks for the same seed, as Dropout is not part of the products."""
    model = nn.Sequential(nn.Linear(16, 64), nn.Dropout(0.5), nn.Linear(64, 64), nn.Dropout(0.5))
    x, y = draw("values", 32, (16, 64), torch.float32)
    found = []
    for dtype in (torch.bfloat16, None):
        twin = copy.deepcopy(model)
        sgd = torch.optim.SGD(twin.parameters(), lr=0.0)
        torch.manual_seed(5)
        TrainStep(twin, F.mse_loss, sgd, compute_dtype=dtype)(x, y, keep_grad=True)
        found.append(torch.cat([p.grad.flatten() for p in twin.parameters()]))
    assert (found[0] - found[1]).norm() < 0.05 * found[1].norm()


def test_training(isa, threads):
    """The parameters move where float32's do; on other CPUs it is float32."""
    torch.manual_seed(0)
    model = net((12, 32, 32, 3), nn.ReLU, dtype=torch.float32)
    x = torch.randn(512, 12)
    y = (x @ torch.randn(12, 3)).argmax(1)
    twins, losses = [copy.deepcopy(model) for _ in range(2)], []
    for twin, dtype in zip(twins, (torch.bfloat16, None), strict=True):
        adam = mlp_ext.optim.Adam(twin.parameters(), lr=1e-2)
        step = TrainStep(twin, F.cross_entropy, adam, compute_dtype=dtype, clip_grad_norm=5.0)
        losses.append([step(x, y).item() for _ in range(60)])
    if isa != "avx512_bf16":
        assert losses[0] == losses[1]
    assert losses[0][-1] < 0.25 * losses[0][0]
    assert losses[0][-1] == pytest.approx(losses[1][-1], rel=0.1)


def test_long_sums_are_of_float32():
    """What is beyond the kernels' depth."""
    x, y = torch.randn(4, 9000), torch.randint(3, (4,))
    model = net((9000, 8, 3), dtype=torch.float32)
    plain, _ = gradients(model, x, y, F.cross_entropy, "float64")
    ours, _ = gradients(model, x, y, F.cross_entropy, "step")
    assert (ours - plain).norm() < 1e-5 * plain.norm()


def test_epoch():
    x, y = draw("classes", 70, (9, 3), torch.float32)
    model, results = net((9, 14, 3), dtype=torch.float32), []
    for by_epoch in (True, False):
        twin = copy.deepcopy(model)
        adam = mlp_ext.optim.Adam(twin.parameters())
        step = TrainStep(twin, F.cross_entropy, adam, compute_dtype=torch.bfloat16)
        loader = mlp_ext.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16)
        for _ in range(2):
            step.epoch(loader if by_epoch else list(loader))
        results.append(twin.state_dict())
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_refusals():
    model = net((9, 14, 3))
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="for parameters of float32"):
        TrainStep(model, F.cross_entropy, sgd, compute_dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="compute_dtype is"):
        TrainStep(model, F.cross_entropy, sgd, compute_dtype=torch.float16)
