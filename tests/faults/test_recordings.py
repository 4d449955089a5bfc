"""TrainStep's way on CUDA, tried on the CPU: it records again for what a recording depends on, and
for nothing else; either way the parameters are those of the loop."""

import copy
import functools
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mlp_ext
from mlp_ext import TrainStep, _graphed_step, _step_core
from mlp_ext._graphed_step import GraphedCore

sys.path.append(str(Path(__file__).resolve().parents[1] / "cuda"))
from graphed_on_cpu import record_by_running_again  # noqa: E402


@pytest.fixture
def pools(monkeypatch):
    """The pool that each recording was given; its length is the number of recordings."""
    given = []

    def record(work, pool):
        given.append(pool)
        return record_by_running_again(work, pool)

    monkeypatch.setattr(_step_core, "GraphedCore", partial(GraphedCore, record=record))
    monkeypatch.setattr(_step_core, "_RECORDED", ("cpu",))
    return given


class Net(nn.Module):
    """One of each kind of layer, and children that no batch goes through."""

    def __init__(self):
        super().__init__()
        self.first = mlp_ext.nn.Linear(5, 8, activation="tanh")
        self.norm = nn.BatchNorm1d(8)
        self.act = nn.LeakyReLU()
        self.dropout = nn.Dropout(0.0)
        self.layer_norm = nn.LayerNorm(8)
        self.more = nn.Sequential()
        self.last = nn.Linear(8, 3)
        self.unused = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.ema = nn.Linear(8, 3)

    def forward(self, x):
        x = self.dropout(self.act(self.norm(self.first(x))))
        return self.last(self.more(self.layer_norm(x)))


class Pair:
    """A model under TrainStep, and its twin in the loop."""

    def __init__(self, loss_fn=F.cross_entropy):
        self.model = Net().double()
        self.twin, self.losses = copy.deepcopy(self.model), (loss_fn, copy.deepcopy(loss_fn))
        self.optimizers = [self.optimizer_of(m) for m in (self.model, self.twin)]
        self.step = TrainStep(self.model, loss_fn, self.optimizers[0])

    def optimizer_of(self, model):
        children = ("first", "norm", "layer_norm", "last")
        used = [p for name in children for p in getattr(model, name).parameters()]
        return torch.optim.SGD(used, 0.1)

    def run(self, steps=2):
        for _ in range(steps):
            x, y = torch.randn(6, 5).double(), torch.randint(3, (6,))
            loss = self.step(x, y)
            expected = self.losses[1](self.twin(x), y)
            self.optimizers[1].zero_grad()
            expected.backward()
            self.optimizers[1].step()
            torch.testing.assert_close(loss, expected.detach())
        for ours, theirs in zip(self.model.parameters(), self.twin.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)


def count(model):
    model.global_step = getattr(model, "global_step", 0) + 1


HARMLESS = {
    "attribute of the model": count,
    "attribute of a child": lambda m: count(m.first),
    "attribute of an activation": lambda m: count(m.act),
    "attribute of a norm": lambda m: count(m.norm),
    "attribute of Dropout": lambda m: count(m.dropout),
    "a tensor as an attribute": lambda m: setattr(m, "loss", torch.zeros(())),
    "evaluated between": lambda m: (m.eval(), m.train()),
    "the same number, another object": lambda m: setattr(m.norm, "eps", float("1e-05")),
    "training of a Linear": lambda m: m.last.train(not m.last.training),
    "unused child": lambda m: m.unused.train(not m.unused.training),
    "values of an unused child": lambda m: setattr(
        m.ema.weight, "data", m.last.weight.data.clone()
    ),
    "values in place": lambda m: m.last.weight.data.mul_(0.5),
    "buffers in place": lambda m: m.norm.running_mean.zero_(),
}
CHANGES = {
    "training of a norm": lambda m: m.norm.eval(),
    "training of Dropout, and p": lambda m: (m.dropout.eval(), setattr(m.dropout, "p", 0.5)),
    "a norm's eps": lambda m: setattr(m.norm, "eps", 0.5),
    "LayerNorm's eps": lambda m: setattr(m.layer_norm, "eps", 0.5),
    "momentum": lambda m: setattr(m.norm, "momentum", 0.7),
    "no momentum": lambda m: setattr(m.norm, "momentum", None),
    "activation of a Linear": lambda m: setattr(m.first, "activation", "relu"),
    "a child": lambda m: setattr(m, "act", nn.Tanh()),
    "a child in an empty container": lambda m: m.more.append(nn.Tanh()),
    "a buffer": lambda m: m.norm.register_buffer("running_mean", torch.full((8,), 2.0).double()),
    "values": lambda m: setattr(m.last.weight, "data", m.last.weight.data * 0.5),
    "values of a buffer": lambda m: setattr(m.norm.running_var, "data", torch.ones(8).double()),
    "frozen": lambda m: m.first.weight.requires_grad_(False),
    "the dictionary of parameters": lambda m: m.last.__dict__.update(
        _parameters={k: nn.Parameter(p.detach() * 2) for k, p in m.last._parameters.items()}
    ),
}


@pytest.mark.parametrize("change", HARMLESS)
def test_what_it_does_not_depend_on(change, pools):
    pair = Pair()
    pair.run()
    for _ in range(3):
        for model in (pair.model, pair.twin):
            HARMLESS[change](model)
        pair.run(1)
    assert len(pools) == 1


@pytest.mark.parametrize("change", CHANGES)
def test_what_it_depends_on(change, pools):
    pair = Pair()
    pair.run()
    for model, optimizer in zip((pair.model, pair.twin), pair.optimizers, strict=True):
        CHANGES[change](model)
        if change == "the dictionary of parameters":
            optimizer.param_groups[:] = pair.optimizer_of(model).param_groups
        if change == "frozen":
            model.first.weight.grad = None
    pair.run()
    assert len(pools) == 2


REFUSED = {
    "a forward on the instance": lambda m: setattr(m.act, "forward", lambda x: x * 2),
    "an activation's argument": lambda m: setattr(m.act, "negative_slope", 0.5),
    "a class": lambda m: setattr(m.act, "__class__", nn.Softsign),
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_it_cannot_run_any_more(change, pools):
    pair = Pair()
    pair.run()
    REFUSED[change](pair.model)
    before = copy.deepcopy(pair.model.state_dict())
    with pytest.raises(ValueError, match="TrainStep cannot run 'act'"):
        pair.step(torch.randn(6, 5).double(), torch.randint(3, (6,)))
    torch.testing.assert_close(pair.model.state_dict(), before, rtol=0, atol=0)


# ---- the loss


def weighted():
    return nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]).double())


OF_THE_LOSS = {
    "attribute": (weighted, lambda f: count(f), 1),
    "label_smoothing": (weighted, lambda f: setattr(f, "label_smoothing", 0.3), 2),
    "reduction": (weighted, lambda f: setattr(f, "reduction", "sum"), 2),
    "ignore_index": (weighted, lambda f: setattr(f, "ignore_index", 1), 2),
    "weight": (weighted, lambda f: setattr(f, "weight", torch.ones(3).double()), 2),
    "no weight": (weighted, lambda f: setattr(f, "weight", None), 2),
    "values of the weight": (weighted, lambda f: setattr(f.weight, "data", f.weight.data * 3), 2),
    "values of the weight in place": (weighted, lambda f: f.weight.mul_(torch.arange(1, 4)), 1),
    "keyword": (
        lambda: functools.partial(F.cross_entropy, label_smoothing=0.1),
        lambda f: f.keywords.update(label_smoothing=0.4),
        2,
    ),
}


@pytest.mark.parametrize("case", OF_THE_LOSS)
def test_options_of_the_loss(case, pools):
    make, change, recordings = OF_THE_LOSS[case]
    pair = Pair(make())
    pair.run()
    for loss_fn in pair.losses:
        change(loss_fn)
    pair.run()
    assert len(pools) == recordings


# ---- hooks and modes that a replay would not show anything to


def test_hooks_on_parameters(pools):
    pair = Pair()
    pair.run()
    batch = torch.randn(6, 5).double(), torch.randint(3, (6,))
    weight = pair.model.last.weight
    for register in (weight.register_hook, weight.register_post_accumulate_grad_hook):
        handle = register(lambda _: None)
        before = copy.deepcopy(pair.model.state_dict())
        with pytest.raises(RuntimeError, match="hook"):
            pair.step(*batch)
        torch.testing.assert_close(pair.model.state_dict(), before, rtol=0, atol=0)
        handle.remove()
    node = weight.expand_as(weight).grad_fn.next_functions[0][0]  # AccumulateGrad
    for register in (node.register_hook, node.register_prehook):
        handle = register(lambda *_: None)
        with pytest.raises(RuntimeError, match="AccumulateGrad"):
            pair.step(*batch)
        handle.remove()
    pair.run()
    assert len(pools) == 1


class Watching(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Dispatching(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "context",
    [
        Watching,
        Dispatching,
        torch.no_grad,
        torch.inference_mode,
        torch.autograd.detect_anomaly,
        lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t),
    ],
)
@pytest.mark.filterwarnings("ignore:Anomaly")
def test_modes(context, pools):
    """The loop raises under no_grad; the others would see nothing of what a graph does again."""
    pair = Pair()
    pair.run()
    before = copy.deepcopy(pair.model.state_dict())
    with (
        context(),
        pytest.raises(RuntimeError, match="TrainStep (does not run|got a call) (under|while)"),
    ):
        pair.step(torch.randn(6, 5).double(), torch.randint(3, (6,)))
    torch.testing.assert_close(pair.model.state_dict(), before, rtol=0, atol=0)
    with torch.device("cpu"):  # a mode too, of functions that make tensors
        pair.run()


# ---- one pool of memory


def test_recordings_share_a_pool(pools, monkeypatch):
    """A new one where none lives, or where a recording was broken off."""
    monkeypatch.setattr(_graphed_step, "MOST_RECORDINGS", 2)
    model = nn.Sequential(nn.Linear(5, 3))
    step = TrainStep(model, F.mse_loss, torch.optim.SGD(model.parameters(), 0.1))

    def run(rows):
        step(torch.randn(rows, 5), torch.randn(rows, 3))

    for rows in (4, 5, 6, 7):  # the first two are dropped for the others
        run(rows)
    first, *shared = pools
    assert first is None and shared[0] is not None
    assert all(pool is shared[0] for pool in shared)

    other = TrainStep(model, F.mse_loss, torch.optim.SGD(model.parameters(), 0.1))
    other(torch.randn(4, 5), torch.randn(4, 3))
    assert pools[-1] is None  # of another TrainStep

    with pytest.raises(RuntimeError):
        step(torch.randn(8, 4), torch.randn(8, 3))  # too narrow: fails while it is recorded
    run(9)
    assert pools[-1] is None
    run(10)
    assert pools[-1] is not None and pools[-1] is not shared[0]
