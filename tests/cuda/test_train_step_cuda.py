"""TrainStep on CUDA, a recorded graph a shape of batch, against the plain PyTorch loop."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import activations, dtypes, relayout
from on_device import DEVICE, IS_CUDA, cuda, cuda_only, to_device
from step_twins import DeviceTwins, batch, way  # noqa: F401  (a fixture)
from test_train_step import MODELS, optimizers
from torch import nn
from train_twins import draw, make, net
from twins import ACTIVATION_MODULES

import mlp_ext
from mlp_ext import TrainStep

pytestmark = cuda
SIZES = (11, 16, 8, 3)
SGD = make("SGD", lr=0.1, momentum=0.9)
ADAM = make("Adam", lr=3e-3, eps=1e-4)


@optimizers
@dtypes("f64", "f32")
def test_optimizers(maker, dtype):
    twins = DeviceTwins(net(SIZES, dtype=dtype), F.cross_entropy, maker)
    twins.run("classes", 20, SIZES, 20)
    twins.check()
    assert all(p.device.type == DEVICE for p in twins.model.parameters())


@pytest.mark.parametrize("clip", [1e-3, 0.3, 1e3])
@dtypes("f64", "f32")
def test_clipping(dtype, clip):
    twins = DeviceTwins(net(SIZES, dtype=dtype), nn.MSELoss(), SGD, clip=clip)
    twins.run("values", 20, SIZES, 6)
    twins.check()


LOSSES = {
    "cross_entropy": ("classes", lambda: nn.CrossEntropyLoss(label_smoothing=0.1)),
    "weighted": ("classes", lambda: nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 0.5]).double())),
    "sum": ("classes", lambda: nn.CrossEntropyLoss(reduction="sum")),
    "mse": ("values", nn.MSELoss),
    "l1": ("values", nn.L1Loss),
    "huber": ("values", lambda: nn.HuberLoss(delta=0.7)),
    "smooth_l1": ("values", nn.SmoothL1Loss),
    "bce": ("probabilities", nn.BCEWithLogitsLoss),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_losses(loss):
    kind, make_loss = LOSSES[loss]
    twins = DeviceTwins(net(SIZES), make_loss().to(DEVICE), SGD)
    twins.run(kind, 9, SIZES, 5)
    twins.check()


@activations()
def test_activations(activation):
    module = ACTIVATION_MODULES[activation] if activation else nn.Identity
    twins = DeviceTwins(net(SIZES, module, last=module()), F.mse_loss, SGD)
    twins.run("values", 20, SIZES, 8)
    twins.check()


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
def test_models(build):
    twins = DeviceTwins(build().double(), F.cross_entropy, ADAM)
    for shape in ((8, 3, 4), (1, 12), (5, 2, 3, 2), (8, 3, 4)):
        x, y = torch.randn(shape, dtype=torch.float64), torch.randint(3, shape[:1])
        twins.both(*to_device(x, y))
    twins.check()


def test_batches_of_several_shapes():
    """In turn: each shape has a recording of its own, and all have the same parameters."""
    twins = DeviceTwins(net(SIZES), F.cross_entropy, ADAM)
    for rows in (20, 7, 20, 1, 7, 33, 20):
        twins.run("classes", rows, SIZES, 1)
    twins.check()


@pytest.mark.parametrize("layout", ["transposed", "rows_apart", "misaligned", "expanded_rows"])
def test_layouts(layout):
    twins = DeviceTwins(net(SIZES), F.mse_loss, SGD)
    for rows in (8, 1):
        x, y = batch("values", rows, SIZES, torch.float64)
        twins.both(relayout(x, layout), relayout(y, layout))
    twins.check()


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
def test_normalizations(norm):
    model = nn.Sequential(nn.Linear(11, 16), norm(16), nn.ReLU(), nn.Linear(16, 3)).double()
    twins = DeviceTwins(model, F.cross_entropy, SGD)
    twins.run("classes", 20, (11, 3), 5)
    twins.check()
    for ours, theirs in zip(twins.model.buffers(), twins.plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    x = torch.randn(6, 11, dtype=torch.float64, device=DEVICE)
    torch.testing.assert_close(twins.model.eval()(x), twins.plain.eval()(x))


def test_keep_grad():
    twins = DeviceTwins(net(SIZES), F.cross_entropy, SGD, clip=0.1)
    for _ in range(3):
        twins.both(*batch("classes", 20, SIZES, torch.float64), keep_grad=True)
        for ours, theirs in zip(twins.model.parameters(), twins.plain.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
    kept = [p.grad.clone() for p in twins.model.parameters()]
    twins.both(*batch("classes", 20, SIZES, torch.float64))
    for grad, p in zip(kept, twins.model.parameters(), strict=True):
        assert torch.equal(p.grad, grad)  # without keep_grad nothing is written


def test_a_loss_outlives_the_next_step():
    """The graph writes its loss into one place; what a call returned must not change with it."""
    twins = DeviceTwins(net(SIZES), F.cross_entropy, SGD)
    losses = [twins.both(*batch("classes", 9, SIZES, torch.float64)) for _ in range(4)]
    assert len({loss.item() for loss in losses}) == 4


def test_schedule():
    twins = DeviceTwins(net(SIZES), F.cross_entropy, make("AdamW", lr=3e-3, eps=1e-4))
    pair = twins.optimizer, twins.plain_optimizer
    schedulers = [torch.optim.lr_scheduler.OneCycleLR(o, 0.01, total_steps=20) for o in pair]
    for _ in range(15):
        twins.run("classes", 8, SIZES, 1)
        for scheduler in schedulers:
            scheduler.step()
    twins.check()


# ---- dropout


def dropping():
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Linear(11, 64), nn.Tanh(), nn.Dropout(0.4), nn.Linear(64, 32), nn.Dropout(0.2),
        nn.Linear(32, 3),
    ).double().to(DEVICE)  # fmt: skip


def losses_of(model, seed, steps=4, lr=0.05, step=None):
    """Of some steps on one batch."""
    step = step or TrainStep(model, F.cross_entropy, torch.optim.SGD(model.parameters(), lr=lr))
    x, y = batch("classes", 20, SIZES, torch.float64)
    torch.manual_seed(seed)
    return [step(x, y).item() for _ in range(steps)]


def test_dropout_follows_manual_seed():
    torch.manual_seed(1)
    first = losses_of(dropping(), 5)
    torch.manual_seed(1)
    assert losses_of(dropping(), 5) == first
    torch.manual_seed(1)
    assert losses_of(dropping(), 6) != first


def test_dropout_draws_anew_at_each_step():
    """Replays of one graph, with parameters that stay."""
    assert len(set(losses_of(dropping(), 5, lr=0.0))) == 4


def test_recording_draws_nothing():
    """The first step, which records, draws what it draws once the graph is there."""
    model = dropping()
    step = TrainStep(model, F.cross_entropy, torch.optim.SGD(model.parameters(), lr=0.0))
    torch.manual_seed(2)
    first = losses_of(model, 5, step=step)
    torch.manual_seed(2)
    assert losses_of(model, 5, step=step) == first


def test_dropout_in_evaluation_does_nothing():
    model = dropping().eval()
    plain = copy.deepcopy(model)
    x, y = batch("classes", 20, SIZES, torch.float64)
    step = TrainStep(model, F.cross_entropy, torch.optim.SGD(model.parameters(), lr=0.1))
    torch.testing.assert_close(step(x, y), F.cross_entropy(plain(x), y).detach())


# ---- precision


def test_compute_dtype_is_near_autocast():
    """Same products in bfloat16, sums and rounding at other places."""
    model = net((32, 64, 10), nn.ReLU, dtype=torch.float32).to(DEVICE)
    plain = copy.deepcopy(model)
    sgd, plain_sgd = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, plain))
    step = TrainStep(model, F.cross_entropy, sgd, compute_dtype=torch.bfloat16)
    for _ in range(5):
        x, y = to_device(*draw("classes", 64, (32, 10), torch.float32))
        loss = step(x, y)
        with torch.autocast(DEVICE, torch.bfloat16):
            expected = F.cross_entropy(plain(x), y)
        plain_sgd.zero_grad()
        expected.backward()
        plain_sgd.step()
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected.detach(), rtol=0.02, atol=0.02)


@cuda_only
def test_precision_is_that_of_the_call():
    """A graph that was recorded under "high" is not replayed under "highest"."""
    model = net((256, 256, 256), dtype=torch.float32).to(DEVICE)
    step = TrainStep(model, F.mse_loss, torch.optim.SGD(model.parameters(), lr=0.0))
    x, y = to_device(*draw("values", 256, (256, 256), torch.float32))
    before = torch.get_float32_matmul_precision()
    try:
        losses = []
        for precision in ("highest", "high", "highest"):
            torch.set_float32_matmul_precision(precision)
            losses.append(step(x, y).item())
    finally:
        torch.set_float32_matmul_precision(before)
    assert losses[0] == losses[2]
    if torch.cuda.get_device_capability() >= (8, 0):
        assert losses[0] != losses[1]


@dtypes("f32")
def test_larger_nets(dtype):
    rows, sizes = (512, (784, 512, 256, 10)) if IS_CUDA else (64, (100, 64, 32, 10))
    twins = DeviceTwins(net(sizes, nn.GELU, dtype=dtype), F.cross_entropy, ADAM)
    twins.run("classes", rows, sizes, 10)
    twins.check(tolerance=1e-3)


def test_a_fused_model():
    twins = DeviceTwins(mlp_ext.fuse(net(SIZES)), F.cross_entropy, ADAM)
    twins.run("classes", 9, SIZES, 5)
    twins.check()
