"""Which children of a Sequential run as one call; fuse, unfuse, explain."""

import copy
import re

import pytest
import torch
from surgery import SURGERY, Doubled, batch, build
from torch import nn
from torch.nn.utils import parametrizations
from twins import assert_same, same_state, seeded

import mlp_ext
from mlp_ext import explain, functional, fuse, unfuse
from mlp_ext._load import _C


@pytest.fixture
def stacks(monkeypatch):
    """Number of layers of every fused call so far."""
    calls: list[int] = []
    real = _C.mlp

    def counting(input, weights, biases, codes):
        calls.append(len(codes))
        return real(input, weights, biases, codes)

    monkeypatch.setattr(_C, "mlp", counting)
    return calls


def test_a_stack_is_one_call(stacks):
    ours, x = fuse(seeded(build)), batch()
    ours(x)
    # 0 alone with ReLU, then 2 up to the training Dropout; 5 up to BatchNorm; 9; 12
    assert stacks == [2, 1, 1, 1]
    stacks.clear()
    ours.eval()(x)
    assert stacks == [3, 1, 1]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_fused_is_plain(training):
    ours, torchs = fuse(seeded(build)), seeded(build)
    assert_same(ours.train(training), torchs.train(training), batch())


@pytest.mark.parametrize("activation", functional.ACTIVATIONS)
def test_every_activation_module_joins_its_linear(activation, stacks):
    ours = mlp_ext.nn.MLP([6, 4, 3], activation=activation, dtype=torch.float64)
    assert_same(ours, nn.Sequential(*copy.deepcopy(ours)), batch())
    assert stacks == [2]


# fuse and unfuse ---------------------------------------------------------------------------------


class Net(nn.Module):
    """Sequentials at several depths, a Linear called by hand, a subclass, shared parts."""

    class Own(nn.Sequential):
        def forward(self, input):
            return super().forward(input) + 1

    class Kept(nn.Sequential):
        pass

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict({"a": nn.Sequential(nn.Sequential(*build()), nn.Sigmoid())})
        self.own = self.Own(nn.Linear(3, 3), nn.ReLU())
        self.kept = self.Kept(nn.Linear(3, 3), nn.ReLU())
        self.fc = nn.Linear(3, 3)
        self.ours = mlp_ext.nn.Linear(3, 3, activation="tanh")
        self.shared = nn.Sequential(self.fc, nn.SiLU(), self.fc)
        self.convolutions = nn.Sequential(nn.Conv1d(1, 1, 1), nn.ReLU())
        self.double()

    def forward(self, input):
        output = torch.relu(self.fc(self.kept(self.own(self.body["a"](input)))))
        return self.shared(self.convolutions(self.ours(output).unsqueeze(1)))


def snapshot(model: nn.Module) -> list:
    """Every module, its state and flags, without its class."""
    return [(name, id(m), sorted(vars(m)), m.training) for name, m in model.named_modules()]


def test_fuse_changes_the_class_of_sequentials_only():
    model, plain = seeded(Net), seeded(Net)
    before, classes = snapshot(model), [type(m) for m in model.modules()]
    assert fuse(model) is model
    assert snapshot(model) == before and same_state(model, plain)
    fused = [name for name, m in model.named_modules() if type(m) is mlp_ext.nn.Sequential]
    assert fused == ["body.a.0", "shared"]
    assert type(model.own) is Net.Own and type(model.kept) is Net.Kept
    assert_same(model, plain, batch())
    assert snapshot(fuse(model)) == before  # a second time, after a call
    assert unfuse(model) is model
    assert snapshot(model) == before and [type(m) for m in model.modules()] == classes
    assert_same(model, plain, batch())


def test_fuse_keeps_hooks_and_optimizers():
    model, seen = seeded(build), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.register_forward_hook(lambda *args: seen.append("whole"))
    model[2].register_forward_hook(lambda *args: seen.append("child"))
    fuse(model)(batch()).sum().backward()
    assert seen == ["child", "whole"]
    before = model[2].weight.clone()
    optimizer.step()
    assert not torch.equal(model[2].weight, before)


def test_fuse_takes_single_modules():
    bare, sequential = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))
    assert fuse(bare) is bare and type(bare) is nn.Linear
    assert type(fuse(sequential)) is mlp_ext.nn.Sequential
    assert type(unfuse(sequential)) is nn.Sequential
    mlp = mlp_ext.nn.MLP([2, 2])
    assert type(unfuse(fuse(mlp))) is mlp_ext.nn.MLP


@pytest.mark.parametrize("function", [fuse, unfuse, explain])
@pytest.mark.parametrize("wrong", [None, "model", nn.Linear, [nn.Linear(1, 1)]], ids=str)
def test_what_is_no_module_is_refused(function, wrong):
    with pytest.raises(TypeError, match=rf"{function.__name__}.*{type(wrong).__name__}"):
        function(wrong)


# explain -----------------------------------------------------------------------------------------


def how(model: nn.Module) -> dict[str, str]:
    """Without the remark about large calls, which test_explain_tells_of_large_calls is about."""
    return {report.path: report.how.split("; large")[0] for report in explain(model)}


def test_explain_says_how():
    assert how(fuse(seeded(build)).eval()) == {
        "0": "fused with 1 (ReLU) into a stack of 3 layers",
        "2": "fused with 4 (LeakyReLU) into a stack of 3 layers",
        "5": "fused with 7 (GELU) into a stack of 3 layers",
        "9": "fused with 10 (ELU) into a stack of 1 layer",
        "12": "fused into a stack of 1 layer",
    }


def test_explain_tells_of_large_calls():
    """Where PyTorch's own operators are faster, functional hands large calls to them."""

    def told(dtype, activation):
        own = mlp_ext.nn.Linear(3, 3, dtype=dtype, activation=activation)
        both = explain(own)[0].how, explain(mlp_ext.nn.Sequential(own))[0].how
        assert len({"; large calls" in text for text in both}) == 1
        return "; large calls" in both[0]

    for dtype in (torch.bfloat16, torch.float16):
        assert told(dtype, None) and told(dtype, "relu")
    assert told(torch.float64, "tanh") and not told(torch.float64, "relu")
    assert not told(torch.float32, "tanh")


def test_explain_says_why_not():
    said = how(fuse(Net()))
    assert said["body.a.0.0"] == "fused with body.a.0.1 (ReLU) into a stack of 2 layers"
    assert said["own.0"].startswith("left alone: Own is a subclass of nn.Sequential")
    assert said["kept.0"].startswith("left alone: Kept is a subclass of nn.Sequential")
    assert said["fc"].startswith("left alone: Net calls it in a forward of its own")
    assert "mlp_ext.fuse" in said["fc"]
    assert said["ours"] == "fused by itself with its own tanh"
    assert said["shared.0"] == "fused with shared.1 (SiLU) into a stack of 2 layers"
    assert said["shared.2"] == "fused into a stack of 2 layers"
    assert "mlp_ext.fuse" in how(build())["0"]
    assert "not in an nn.Sequential" in how(nn.Linear(1, 1))[""]
    assert "TransformerEncoderLayer" in how(nn.TransformerEncoderLayer(4, 2))["linear1"]


REASONS = {
    "hook": r"^left alone: forward hook on the module \(<lambda>\)$",
    "pre-hook": "^left alone: forward pre hook",
    "backward hook": "^left alone: backward hook",
    "weight_norm": "^left alone: parametrized weight$",
    "parametrized bias": "^left alone: parametrized bias$",
    "old weight_norm": r"^left alone: forward pre hook .*\(WeightNorm\)$",
    "subclass": "^left alone: Doubled is a subclass of Linear$",
    "forward of a linear": "^left alone: a forward of its own, set on the instance$",
    "compile of a linear": r"^left alone: its own compile\(\) was called$",
    "forward of the whole": "^left alone: the Sequential around it: a forward of its own",
    "weight as an attribute": "^left alone: its weight is not a parameter",
    "activation first": "^fused with 2 ",
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("surgery", REASONS)
def test_explain_gives_the_reason(surgery):
    ours = fuse(seeded(build))
    SURGERY[surgery](ours)
    place = "1" if surgery == "activation first" else "2"
    assert re.search(REASONS[surgery], how(ours)[place]), how(ours)[place]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("surgery", SURGERY.values(), ids=SURGERY.keys())
def test_explain_is_honest(surgery, training, stacks):
    ours = fuse(seeded(build)).train(training)
    surgery(ours)
    fuse(ours)  # "nest" brings in an nn.Sequential
    state = torch.get_rng_state()
    said = sum(report.fused for report in explain(ours))
    assert torch.equal(state, torch.get_rng_state()) and stacks == []
    ours(batch())
    assert sum(stacks) == said


@pytest.mark.filterwarnings("ignore:Complex modules:UserWarning")
@pytest.mark.filterwarnings("ignore:Initializing zero-element:UserWarning")
def test_explain_knows_what_kernels_take():
    ours = fuse(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    assert [r.fused for r in explain(ours)] == [True, True]
    assert "complex64" in how(ours.to(torch.complex64))["0"]
    assert "meta" in how(ours.to(device="meta", dtype=torch.float32))["0"]
    own = mlp_ext.nn.LinearReLU(2, 2)  # would run fused by itself
    ours = fuse(nn.Sequential(own, nn.Linear(2, 0)))
    assert [r.fused for r in explain(ours)] == [False, False]
    assert set(how(ours).values()) == {"left alone: PyTorch's own operators run empty parameters"}
    ours = fuse(nn.Sequential(nn.Linear(2, 2)))
    ours[0].weight = nn.Parameter(ours[0].weight.detach().as_subclass(Tagged))
    assert how(ours)["0"].startswith("left alone: PyTorch's own operators run Tagged")


class Tagged(torch.Tensor):
    pass


def test_explain_computes_nothing():
    for linear in (nn.Linear(3, 3), mlp_ext.nn.LinearReLU(3, 3)):
        model = fuse(nn.Sequential(parametrizations.spectral_norm(linear)))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        assert [r.fused for r in explain(model)] == [isinstance(linear, mlp_ext.nn.Linear)]
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_explain_covers_own_linears_kept_out_of_a_stack():
    own = mlp_ext.nn.LinearReLU(2, 2)
    ours = mlp_ext.nn.Sequential(own, nn.Linear(2, 2))
    assert how(ours)["0"] == "fused with its own relu into a stack of 2 layers"
    own.register_forward_hook(lambda *args: None)
    assert how(ours)["0"].startswith("fused by itself with its own relu (not in a stack: forward")
    own.forward = lambda input: input
    assert not explain(ours)[0].fused


def test_explain_prints_a_table():
    explanation = explain(fuse(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), Doubled(2, 2))))
    assert isinstance(explanation, list) and len(explanation) == 2
    assert (explanation[0].path, explanation[0].fused) == ("0", True)
    assert str(explanation) == repr(explanation)
    assert str(explanation).splitlines() == [
        "Linear  fused  how",
        "0       yes    fused with 1 (ReLU) into a stack of 1 layer",
        "2       no     left alone: Doubled is a subclass of Linear",
    ]
    assert str(explain(nn.ReLU())) == "no Linear in the model"


def test_explain_survives_cycles_and_lists_shared_modules_at_each_place():
    model = fuse(Net())
    model.fc.parent = model
    places = [report.path for report in explain(model)]
    assert places.count("fc") == 1 and {"shared.0", "shared.2"} < set(places)
    assert len(places) == len(set(places))
