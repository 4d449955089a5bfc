"""BatchNorm1d and LayerNorm in TrainStep, and chains in any order, against the plain loop."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from cases import KINKED, activations, dtypes
from torch import nn
from train_twins import Twins, assert_same, draw, make
from twins import ACTIVATION_MODULES

from mlp_ext import TrainStep

SGD = make("SGD", lr=0.05, momentum=0.9)
ADAM = make("Adam", lr=3e-3, eps=1e-4)
SHAPES = ((24, 9, 14), (300, 33, 40), (70, 400, 350))  # rows, inputs, hidden; two threads from 300
shapes = pytest.mark.parametrize("shape", SHAPES, ids=("small", "rows", "layers"))


def norm(name, width, **options):
    if name == "layer":
        return nn.LayerNorm(width, **options)
    return nn.BatchNorm1d(width, **options)


def with_norms(name, inputs, hidden, activation=nn.Tanh, **options):
    """One before the first Linear, one between Linear and activation, one behind an activation."""
    return nn.Sequential(
        norm(name, inputs, **options),
        nn.Linear(inputs, hidden),
        norm(name, hidden, **options),
        activation(),
        nn.Linear(hidden, 7),
        activation(),
        norm(name, 7, **options),
        nn.Linear(7, 3),
    )


def jittered(model):
    """Parameters of the norms that are not 1 and 0."""
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def check_buffers(twins):
    for (name, ours), theirs in zip(
        twins.model.named_buffers(), twins.plain.buffers(), strict=True
    ):
        tolerance = 1e-5 if ours.dtype == torch.float32 else 1e-12
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("name", ("batch", "layer"))
@pytest.mark.parametrize("training", (True, False), ids=("train", "eval"))
@shapes
@dtypes("f64", "f32")
def test_norms(name, training, shape, dtype, threads):
    rows, inputs, hidden = shape
    model = jittered(with_norms(name, inputs, hidden)).to(dtype)
    twins = Twins(model, F.cross_entropy, SGD, clip=1.0)
    for n in (rows, rows - 3, 2, rows):
        for each in (twins.model, twins.plain):
            each.train(training or n == 2)
        twins.run("classes", n, (inputs, 3), 1)
    twins.check()
    check_buffers(twins)


@pytest.mark.parametrize("name", ("batch", "layer"))
def test_isas(isa, name):
    for dtype in (torch.float64, torch.float32):
        model = jittered(with_norms(name, 19, 37)).to(dtype)
        twins = Twins(model, F.cross_entropy, ADAM)
        twins.run("classes", 21, (19, 3), 10)
        twins.check()
        check_buffers(twins)


@activations()
@pytest.mark.parametrize("name", ("batch", "layer"))
def test_activations_behind_a_norm(activation, name):
    module = ACTIVATION_MODULES[activation] if activation else nn.Identity
    model = jittered(with_norms(name, 9, 14, module)).double()
    twins = Twins(model, F.mse_loss, SGD)
    twins.run("values", 20, (9, 3), 8 if activation in KINKED else 50)
    twins.check()


OPTIONS = {
    "batch": {
        "no affine": {"affine": False},
        "no statistics": {"track_running_stats": False},
        "cumulative": {"momentum": None},
        "momentum and eps": {"momentum": 0.7, "eps": 0.1},
        "momentum 0": {"momentum": 0.0},
    },
    "layer": {
        "no affine": {"elementwise_affine": False},
        "no bias": {"bias": False},
        "eps": {"eps": 0.1},
    },
}


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, o) for name, cases in OPTIONS.items() for o in cases.values()],
    ids=[f"{name}-{case}" for name, cases in OPTIONS.items() for case in cases],
)
def test_options(name, options):
    twins = Twins(jittered(with_norms(name, 9, 14, **options)).double(), F.mse_loss, SGD)
    for training in (True, True, False, True):
        twins.model.train(training)
        twins.plain.train(training)
        twins.run("values", 20, (9, 3), 5)
    twins.check()
    check_buffers(twins)


@pytest.mark.parametrize("name", ("batch", "layer"))
@pytest.mark.parametrize(
    "frozen",
    (["0.weight"], ["0.weight", "0.bias"], ["2.weight"], ["2.bias", "6.weight", "6.bias"])
    + (["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"],),
    ids="+".join,
)
def test_frozen(name, frozen, threads):
    twins = Twins(jittered(with_norms(name, 33, 40)).double(), F.cross_entropy, SGD)
    for model in (twins.model, twins.plain):
        for parameter in frozen:
            model.get_parameter(parameter).requires_grad_(False)
    for _ in range(2):
        twins.both(*draw("classes", 300, (33, 3)), keep_grad=True)
    twins.check()
    check_buffers(twins)
    for ours, theirs in zip(twins.model.parameters(), twins.plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)


def test_what_changes_between_calls_is_seen():
    twins = Twins(with_norms("batch", 9, 14).double(), F.mse_loss, SGD)
    changes = (
        lambda m: setattr(m[0], "momentum", 0.5),
        lambda m: setattr(m[2], "eps", 0.3),
        lambda m: m[2].reset_running_stats(),
        lambda m: m[0].eval(),
        lambda m: setattr(m[0], "track_running_stats", False),
        lambda m: m[0].train(),
        lambda m: m[6].running_var.fill_(4.0),
        lambda m: m.load_state_dict({k: v + 0.01 for k, v in m.state_dict().items()}),
        lambda m: setattr(m[6], "running_mean", torch.full((7,), 0.5, dtype=torch.float64)),
    )
    for change in changes:
        for model in (twins.model, twins.plain):
            change(model)
        twins.run("values", 20, (9, 3), 2)
    twins.check()
    check_buffers(twins)


def test_one_row_is_refused():
    """As PyTorch does: the variance of one value says nothing."""
    model = with_norms("batch", 9, 14).double()
    step = TrainStep(model, F.mse_loss, torch.optim.Adam(model.parameters()))
    before = copy.deepcopy((model.state_dict(), step.optimizer.state_dict()))
    x, y = draw("values", 1, (9, 3))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        F.mse_loss(copy.deepcopy(model)(x), y)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        step(x, y)
    assert_same(before, (model.state_dict(), step.optimizer.state_dict()))
    model.eval()
    step(x, y)


@pytest.mark.parametrize("name", ("batch", "layer"))
def test_large_means_and_many_rows(name):
    """Where a variance as the difference of two large numbers would lose its digits."""
    torch.manual_seed(0)
    x = torch.randn(4096, 20) + 300
    model = jittered(nn.Sequential(norm(name, 20), nn.Linear(20, 4)))
    y = torch.randn(4096, 4)
    gradients = {}
    for way in ("float64", "torch", "step"):
        twin = copy.deepcopy(model).to(torch.float64 if way == "float64" else torch.float32)
        data = (x.double(), y.double()) if way == "float64" else (x, y)
        if way == "step":
            sgd = torch.optim.SGD(twin.parameters(), lr=0.0)
            TrainStep(twin, F.mse_loss, sgd)(*data, keep_grad=True)
        else:
            F.mse_loss(twin(data[0]), data[1]).backward()
        gradients[way] = torch.cat([p.grad.double().flatten() for p in twin.parameters()])
    errors = [(gradients[way] - gradients["float64"]).norm().item() for way in ("step", "torch")]
    assert errors[0] <= 2 * errors[1], errors


def test_the_mean_of_equal_rows_is_their_value(isa):
    """As PyTorch's is; a last place of difference would be 300 times that in the output."""
    model = nn.Sequential(nn.BatchNorm1d(40, momentum=1.0), nn.Linear(40, 2))
    row = torch.rand(40)
    step = TrainStep(model, F.mse_loss, SGD(model, False))
    step(row.expand(3, 40), torch.zeros(3, 2))
    assert torch.equal(model[0].running_mean, row)
    assert torch.equal(model[0].running_var, torch.zeros(40))


def test_an_infinite_mean_stays_infinite(isa):
    model = nn.Sequential(nn.BatchNorm1d(40, momentum=1.0), nn.Linear(40, 2))
    x = torch.ones(4, 40)
    x[0, 0], x[1, 1], x[:, 2], x[2, 3] = torch.inf, -torch.inf, 3e38, torch.nan
    TrainStep(model, F.mse_loss, make("SGD", lr=0.0)(model, False))(x, torch.zeros(4, 2))
    expected = F.batch_norm(x, mean := torch.zeros(40), torch.ones(40), training=True, momentum=1.0)
    assert expected.shape == x.shape
    assert torch.equal(model[0].running_mean.nan_to_num(7.0), mean.nan_to_num(7.0))


def test_nan_and_inf_come_through():
    for name in ("batch", "layer"):
        model = with_norms(name, 9, 14).double()
        step = TrainStep(model, F.mse_loss, torch.optim.SGD(model.parameters(), lr=0.1))
        x, y = draw("values", 8, (9, 3))
        x[3, 2] = math.inf
        assert step(x, y).isnan()


CHAINS = {
    "activation first": lambda: [nn.Tanh(), nn.Linear(9, 3)],
    "activation first, by input": lambda: [nn.GELU(), nn.Linear(9, 3)],
    "activation last": lambda: [nn.Linear(9, 3), nn.LayerNorm(3), nn.SiLU()],
    "norm last": lambda: [nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 3), nn.BatchNorm1d(3)],
    "two activations": lambda: [nn.Linear(9, 5), nn.Tanh(), nn.GELU(), nn.Linear(5, 3), nn.ELU()],
    "two norms": lambda: [nn.LayerNorm(9), nn.BatchNorm1d(9), nn.Linear(9, 3)],
    "norm, activation, norm": lambda: [
        nn.Linear(9, 3),
        nn.BatchNorm1d(3),
        nn.Tanh(),
        nn.LayerNorm(3),
    ],
    "flatten later": lambda: [
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(9, 4),
        nn.Flatten(),
        nn.Linear(4, 3),
    ],
    "dropout off": lambda: [
        *(nn.Dropout(0.0), nn.Linear(9, 4), nn.Dropout(0.0), nn.Dropout(0.0), nn.Tanh()),
        *(nn.Linear(4, 3), nn.Dropout(0.0)),
    ],
}


@pytest.mark.parametrize("build", CHAINS.values(), ids=CHAINS.keys())
def test_chains(build, threads):
    twins = Twins(jittered(nn.Sequential(*build())).double(), F.mse_loss, SGD)
    twins.run("values", 50, (9, 3), 10)
    twins.run("values", 3000, (9, 3), 2)
    twins.check()
    check_buffers(twins)


@pytest.mark.parametrize("seed", range(40))
def test_random_chains(seed, threads):
    """Any order of layers, either loss, any rows; SGD, whose steps do not amplify rounding."""
    torch.manual_seed(seed)
    pick = lambda n: int(torch.randint(n, ()))  # noqa: E731
    width = inputs = 3 + pick(30)
    children = []
    for _ in range(2 + pick(5)):
        kind = pick(5)
        if kind < 2:
            fan_out = 1 + pick(40)
            children.append(nn.Linear(width, fan_out, bias=bool(pick(4))))
            width = fan_out
        elif kind == 2:
            children.append(nn.BatchNorm1d(width, affine=bool(pick(3))))
        elif kind == 3 and width > 2:
            children.append(nn.LayerNorm(width, elementwise_affine=bool(pick(3))))
        else:
            children.append((nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus)[pick(5)]())
    children.append(nn.Linear(width, 4))
    twins = Twins(
        jittered(nn.Sequential(*children)).double(), (F.cross_entropy, F.mse_loss)[seed % 2], SGD
    )
    kind = ("classes", "values")[seed % 2]
    for _ in range(4):
        twins.run(kind, 8 + pick(400), (inputs, 4), 1)
        for model in (twins.model, twins.plain):
            model.train(seed % 3 > 0)
    twins.check(1e-7)
    check_buffers(twins)
