"""Models that TrainStep takes and refuses: with a forward of their own, and with what it cannot run
faithfully."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from train_twins import Twins, make, net

from mlp_ext import TrainStep

SIZES = (6, 8, 3)


class Own(nn.Module):
    """fc1 (6 -> 8), fc2 (8 -> 8), fc3 (8 -> 3), and a forward to be given."""

    def __init__(self, **children):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.layers = nn.Sequential(self.fc1, nn.Tanh(), self.fc3)
        for name, child in children.items():
            setattr(self, name, child)
        self.to(torch.float64)

    def method(self, x):
        return self.fc3(self.fc1(x))


def own(forward, **children):
    """A model of a class of its own: torch.fx reads the forward of the class."""
    return type("Mine", (Own,), {"forward": forward})(**children)


def through(function):
    return lambda m, x: m.fc3(function(m.fc1(x)))


CHAINS = {
    "layers": lambda m, x: m.layers(x),
    "F.relu": lambda m, x: m.fc3(F.relu(m.fc2(F.relu(m.fc1(x))))),
    "flatten": lambda m, x: m.fc3(torch.tanh(m.fc1(torch.flatten(x, 1)))),
    "x.flatten": lambda m, x: m.layers(x.flatten(1)),
    "torch.relu": through(torch.relu),
    "x.relu": through(lambda h: h.relu()),
    "F.tanh": through(F.tanh),
    "x.tanh": through(lambda h: h.tanh()),
    "torch.sigmoid": through(torch.sigmoid),
    "x.sigmoid": through(lambda h: h.sigmoid()),
    "F.sigmoid": through(F.sigmoid),
    "F.gelu": through(F.gelu),
    "F.silu": through(F.silu),
    "F.leaky_relu": through(F.leaky_relu),
    "F.elu": through(F.elu),
    "F.softplus": through(F.softplus),
    "F.elu(alpha=1)": through(lambda h: F.elu(h, alpha=1.0)),
    "a module twice": lambda m, x: m.fc3(m.act(m.fc2(m.act(m.fc1(x))))),
    "a loop": lambda m, x: [x := child(x) for child in m.layers][-1],
    "a call of a method": lambda m, x: m.method(x),
}


def test_a_chain_of_chains():
    inner = own(through(F.gelu), fc3=nn.Sequential(nn.Linear(8, 6), nn.Identity()))
    outer = own(lambda m, x: torch.sigmoid(m.fc3(m.fc1(m.inner(torch.flatten(x, 1))))), inner=inner)
    for module in (outer, inner):
        del module.layers, module.fc2
    twins = Twins(nn.Sequential(outer), nn.BCELoss(), make("SGD", lr=0.1))
    twins.run("probabilities", 20, (6, 3), 10)
    twins.check()


@pytest.mark.parametrize("name", CHAINS)
def test_own_forwards_that_are_chains(name):
    model = own(CHAINS[name], act=nn.SiLU())

    def maker(m, plain):
        names = ["fc1", "fc3"] + ["fc2"] * ("fc2" in CHAINS[name].__code__.co_names)
        return torch.optim.SGD([p for n in names for p in getattr(m, n).parameters()], 0.1)

    flags = [child.training for child in model.modules()]
    twins = Twins(model, F.mse_loss, maker)
    assert [child.training for child in model.modules()] == flags
    twins.run("values", 20, (6, 3), 10)
    twins.check()


NO_CHAINS = {
    "skip connection": lambda m, x: m.fc3(m.fc2(h := m.fc1(x)) + h),
    "two inputs": lambda m, x, y: m.layers(x + y),
    "an optional input": lambda m, x, y=None: m.layers(x),
    "branch on data": lambda m, x: m.layers(x) if x.sum() > 0 else -m.layers(x),
    "branch on shape": lambda m, x: m.layers(x) if x.shape[0] > 3 else -m.layers(x),
    "branch on training": lambda m, x: m.layers(x) if m.training else m.fc3(m.fc1(x)),
    "branch on a child's training": lambda m, x: m.layers(x) if m.fc1.training else m.fc3(m.fc1(x)),
    "functional dropout": lambda m, x: m.fc3(F.dropout(m.fc1(x), 0.5, m.training)),
    "a Linear twice": lambda m, x: m.fc3(m.fc2(torch.relu(m.fc2(m.fc1(x))))),
    "two outputs": lambda m, x: (m.layers(x), 1),
    "an inner output": lambda m, x: (m.fc3(h := m.fc1(x)), h)[1],
    "scaled": lambda m, x: 2 * m.layers(x),
    "no layer": lambda m, x: x,
    "weights used directly": lambda m, x: F.linear(x, m.fc1.weight, m.fc1.bias),
    "inplace": lambda m, x: m.fc3(F.relu(m.fc1(x), inplace=True)),
    "elu alpha=0": lambda m, x: m.fc3(F.elu(m.fc1(x), alpha=0)),
    "leaky_relu 0.0": lambda m, x: m.fc3(F.leaky_relu(m.fc1(x), negative_slope=0.0)),
    "leaky_relu 0.2": lambda m, x: m.fc3(F.leaky_relu(m.fc1(x), 0.2)),
    "gelu tanh": lambda m, x: m.fc3(F.gelu(m.fc1(x), approximate="tanh")),
    "softplus beta": lambda m, x: m.fc3(F.softplus(m.fc1(x), beta=2.0)),
    "flatten all": lambda m, x: m.layers(torch.flatten(x)),
    "detached": lambda m, x: m.fc3(m.fc1(x).detach()),
    "normalized": lambda m, x: m.fc3(F.layer_norm(m.fc1(x), (8,))),
    "cast": lambda m, x: m.layers(x.double()),
    "raises": lambda m, x: m.nothing(x),
    "no_grad": lambda m, x: m.fc3(torch.no_grad()(m.fc1.forward)(x)),
    "no_grad, a layer": lambda m, x: m.fc3(torch.no_grad()(lambda: m.fc1(x))()),
    "no_grad, all of it": torch.no_grad()(lambda m, x: m.layers(x)),
    "autocast": torch.autocast("cpu", torch.bfloat16)(lambda m, x: m.layers(x)),
    "sets an attribute": lambda m, x: setattr(m, "seen", m.fc1(x)) or m.fc3(m.seen),
    "counts its calls": lambda m, x: setattr(m, "count", m.count + 1) or m.layers(x),
}


@pytest.mark.parametrize("name", NO_CHAINS)
@pytest.mark.parametrize("nested", (False, True), ids=("root", "nested"))
def test_own_forwards_that_are_no_chains(name, nested):
    model = own(NO_CHAINS[name])
    model.count = 0
    model.eval()
    whole = nn.Sequential(nn.Sequential(nn.Linear(6, 6), model)).double() if nested else model
    if nested and name == "no layer":
        return
    where = "'0.1" if nested else "the model|'"
    with pytest.raises(ValueError, match=f"^TrainStep cannot run ({where})"):
        TrainStep(whole, F.mse_loss, torch.optim.SGD(whole.parameters(), 0.1))
    assert not any(child.training for child in model.modules())
    assert model.count == 0 and not hasattr(model, "seen")


def with_hook(kind):
    linear = nn.Linear(8, 8)
    getattr(linear, f"register_{kind}")(lambda *args: None)
    return linear


def with_parameter_hook(name):
    linear = nn.Linear(8, 8)
    getattr(linear.weight, name)(lambda *args: None)
    return linear


def changed(module, **attributes):
    for name, value in attributes.items():
        object.__setattr__(module, name, value)
    return module


class Doubled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


class LoudReLU(nn.ReLU):
    pass


class Called(nn.Module):
    def forward(self, input):
        return torch.relu(input)

    def __call__(self, input):
        return 2 * super().__call__(input)


CHILDREN = {
    "BatchNorm1d of another width": lambda: nn.BatchNorm1d(7),
    "LayerNorm of two dimensions": lambda: nn.LayerNorm((2, 4)),
    "BatchNorm2d": lambda: nn.BatchNorm2d(8),
    "RMSNorm": lambda: nn.RMSNorm(8),
    "lazy BatchNorm1d": lambda: nn.LazyBatchNorm1d(),
    "Conv1d": lambda: nn.Conv1d(8, 8, 1),
    "LSTM": lambda: nn.LSTM(8, 8),
    "Bilinear": lambda: nn.Bilinear(8, 8, 8),
    "Softmax": lambda: nn.Softmax(1),
    "AlphaDropout": lambda: nn.AlphaDropout(0.1),
    "Dropout1d": lambda: nn.Dropout1d(0.1),
    "ModuleList": lambda: nn.ModuleList([nn.Linear(8, 8)]),
    "LazyLinear": lambda: nn.LazyLinear(8),
    "subclass of Linear": lambda: Doubled(8, 8),
    "subclass of ReLU": LoudReLU,
    "own __call__": Called,
    "GELU none of them": lambda: changed(nn.GELU(), approximate="other"),
    "LeakyReLU(0.2)": lambda: nn.LeakyReLU(0.2),
    "ELU(2)": lambda: nn.ELU(2.0),
    "Softplus(2)": lambda: nn.Softplus(2.0),
    "forward pre hook": lambda: with_hook("forward_pre_hook"),
    "forward hook": lambda: with_hook("forward_hook"),
    "backward hook": lambda: with_hook("full_backward_hook"),
    "backward pre hook": lambda: with_hook("full_backward_pre_hook"),
    "hook of the weight": lambda: with_parameter_hook("register_hook"),
    "hook after accumulation": lambda: with_parameter_hook("register_post_accumulate_grad_hook"),
    "forward on the instance": lambda: changed(nn.ReLU(), forward=lambda x: x),
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(8, 8)),
    "spectral_norm": lambda: nn.utils.spectral_norm(nn.Linear(8, 8)),
    "pruned": lambda: prune.l1_unstructured(nn.Linear(8, 8), "weight", 0.5),
    "bfloat16": lambda: nn.Linear(8, 8, dtype=torch.bfloat16),
    "complex": lambda: nn.Linear(8, 8, dtype=torch.complex64),
    "meta": lambda: nn.Linear(8, 8, device="meta"),
    "transposed": lambda: changed_weight(torch.randn(8, 8).t()),
    "compiled": lambda: torch.compile(nn.Linear(8, 8)),
    "scripted": lambda: torch.jit.trace(nn.Linear(8, 8), torch.randn(1, 8)),
}


def changed_weight(weight):
    linear = nn.Linear(8, 8)
    linear.weight = nn.Parameter(weight)
    return linear


@pytest.mark.parametrize("build", CHILDREN.values(), ids=CHILDREN.keys())
@pytest.mark.filterwarnings("ignore")
def test_refused_children(build):
    model = nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 8), build()), nn.Linear(8, 3))
    parameters = [p for p in model.parameters() if type(p) is nn.Parameter]
    with pytest.raises(ValueError, match=r"^TrainStep cannot run '1\.1"):
        TrainStep(model, F.mse_loss, torch.optim.SGD(parameters, 0.1))


def tied():
    model = net((8, 8, 8))
    model[2].weight = model[0].weight
    return model


def hooked_root():
    model = net(SIZES)
    model.register_forward_hook(lambda *args: None)
    return model


MODELS = {
    "tied": (tied, "'2': it shares"),
    "hook of the model": (hooked_root, "the model: a forward hook"),
    "Flatten(0)": (lambda: nn.Sequential(nn.Flatten(0), nn.Linear(6, 3)), "'0': Flatten with"),
    "no features": (lambda: nn.Sequential(nn.Linear(6, 0), nn.Linear(0, 3)), "'0': its weight"),
    "mixed dtypes": (lambda: nn.Sequential(net(SIZES), nn.Linear(3, 3)), "the model: its par"),
}


@pytest.mark.parametrize("case", MODELS.values(), ids=MODELS.keys())
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_refused_models(case):
    model = case[0]()
    with pytest.raises(ValueError, match=f"^TrainStep cannot run {case[1]}"):
        TrainStep(model, F.mse_loss, torch.optim.SGD(model.parameters(), 0.1))
