"""A Linear with an activation is no nn.Linear: LoRA, quantizers and KFAC take those for affine."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from twins import COPIES, assert_same, same_state, seeded

import mlp_ext
from mlp_ext.nn import Linear, LinearActivation, LinearReLU

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


def affine_only(model: nn.Module) -> nn.Module:
    """What such tools do: an affine map in the place of whatever is an nn.Linear."""
    for name, child in model.named_children():
        if isinstance(child, nn.Linear):
            plain = nn.Linear(child.in_features, child.out_features)
            plain.load_state_dict(child.state_dict())
            setattr(model, name, plain)
        else:
            affine_only(child)
    return model


def test_a_tool_that_takes_every_nn_linear_for_affine():
    model = nn.Sequential(
        Linear(5, 8, activation="relu"), LinearReLU(8, 8), Linear(8, 8), nn.Tanh(), Linear(8, 3)
    )
    before = model(X)
    for fuse in (lambda m: m, mlp_ext.fuse):
        torch.testing.assert_close(affine_only(fuse(copy.deepcopy(model)))(X), before)


def test_what_isinstance_says():
    activated = Linear(5, 3, activation="gelu")
    assert type(activated) is LinearActivation
    for module in (activated, LinearReLU(5, 3), LinearActivation(5, 3, activation=None)):
        assert not isinstance(module, nn.Linear) and not issubclass(type(module), nn.Linear)
        assert isinstance(module, Linear) and isinstance(module, LinearActivation)
    plain = Linear(5, 3)
    assert type(plain) is Linear and isinstance(plain, nn.Linear)
    assert not isinstance(plain, LinearActivation) and plain.activation is None
    assert issubclass(Linear, nn.Linear) and not isinstance(nn.Linear(5, 3), Linear)
    assert not isinstance(nn.ReLU(), Linear)


def test_the_activation_of_a_linear_may_be_set():
    ours = seeded(lambda: Linear(5, 3))
    expected = torch.tanh(ours(X))
    keys, parameters = list(ours.state_dict()), list(ours.parameters())
    ours.activation = "tanh"
    assert type(ours) is LinearActivation and not isinstance(ours, nn.Linear)
    torch.testing.assert_close(ours(X), expected)
    assert list(ours.state_dict()) == keys
    assert all(a is b for a, b in zip(ours.parameters(), parameters, strict=True))
    ours.activation = None  # affine again, and never again for an nn.Linear
    torch.testing.assert_close(torch.tanh(ours(X)), expected)
    plain = Linear(5, 3)
    plain.activation = None
    assert type(plain) is Linear


@pytest.mark.parametrize("wrong", ["swish", 3, torch.relu], ids=["unknown", "number", "function"])
def test_an_unknown_activation_changes_nothing(wrong):
    ours = Linear(5, 3)
    with pytest.raises(ValueError, match="unknown activation"):
        ours.activation = wrong
    assert type(ours) is Linear and ours.activation is None


class Own(Linear):
    """A user's subclass."""


class OwnActivation(LinearActivation):
    def __init__(self, *sizes):
        super().__init__(*sizes, activation="silu")


def test_a_subclass_of_linear_has_no_activation():
    state = torch.get_rng_state()
    with pytest.raises(TypeError, match="derive Own from mlp_ext.nn.LinearActivation"):
        Own(5, 3, activation="relu")
    assert torch.equal(state, torch.get_rng_state())
    own = Own(5, 3)
    with pytest.raises(TypeError, match="derive Own from mlp_ext.nn.LinearActivation"):
        own.activation = "relu"
    assert own.activation is None and type(own) is Own
    own.activation = nn.ReLU()  # a child of the subclass's own, which is its own affair
    assert dict(own.named_children()) == {"activation": own.activation}


def test_a_subclass_of_the_one_with_an_activation():
    ours = seeded(lambda: OwnActivation(5, 3))
    plain = seeded(lambda: nn.Linear(5, 3))
    assert same_state(ours, plain) and not isinstance(ours, nn.Linear)
    torch.testing.assert_close(ours(X), nn.functional.silu(plain(X)))


# Pickles -----------------------------------------------------------------------------------------


class Pickled:
    """A module as pickles had it when a Linear with an activation was a Linear."""

    def __init__(self, kind, module):
        self.kind, self.state = kind, {**module.__dict__}

    def __reduce__(self):
        return object.__new__, (self.kind,), self.state


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_a_pickle_of_a_linear_from_before(activation, protocol):
    module = seeded(lambda: Linear(5, 3, activation=activation))
    old = pickle.loads(pickle.dumps(Pickled(Linear, module), protocol))
    assert type(old) is (LinearActivation if activation else Linear)
    assert old.activation == activation and same_state(old, module)
    assert torch.equal(old(X), module(X))


def test_a_pickle_of_linear_relu_from_before():
    module = LinearReLU(5, 3)
    old = pickle.loads(pickle.dumps(Pickled(LinearReLU, module)))
    assert type(old) is LinearReLU and torch.equal(old(X), module(X))


def test_a_pickle_of_a_subclass_with_an_activation_is_refused():
    old = pickle.dumps(Pickled(Own, Linear(5, 3, activation="relu")))
    with pytest.raises(TypeError, match="derive Own from mlp_ext.nn.LinearActivation"):
        pickle.loads(old)
    assert type(pickle.loads(pickle.dumps(Pickled(Own, Linear(5, 3))))) is Own


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize(
    "make",
    [lambda: Linear(5, 3), lambda: Linear(5, 3, activation="elu"), lambda: LinearReLU(5, 3)],
    ids=["Linear", "LinearActivation", "LinearReLU"],
)
def test_copies(make, how):
    module = make()
    other = COPIES[how](module)
    assert type(other) is type(module) and other.activation == module.activation
    assert torch.equal(other(X), module(X)) and same_state(other, module)


# What else holds of an nn.Linear -----------------------------------------------------------------


def test_made_again_from_its_type():
    for module in (Linear(5, 3, False), LinearReLU(5, 3, False)):
        again = type(module)(module.in_features, module.out_features, module.bias is not None)
        again.load_state_dict(module.state_dict())
        assert torch.equal(again(X), module(X))
    module = Linear(5, 3, activation="elu")
    with pytest.raises(TypeError, match="activation"):  # not: another function, in silence
        type(module)(5, 3, True)
    assert list(inspect.signature(Linear).parameters) == [
        *inspect.signature(nn.Linear).parameters,
        "activation",
    ]


def test_reset_parameters_draws_as_torch_does(monkeypatch):
    ours, plain = LinearReLU(5, 3), nn.Linear(5, 3)
    torch.manual_seed(1)
    ours.reset_parameters()
    torch.manual_seed(1)
    plain.reset_parameters()
    assert same_state(ours, plain)
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda self: nn.init.ones_(self.weight))
    assert bool((LinearReLU(5, 3).weight == 1).all())


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    "change",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        lambda m: prune.l1_unstructured(m, "weight", 0.4),
        lambda m: parametrize.register_parametrization(m, "bias", Doubled()),
    ],
)
def test_reparametrizations(change):
    class Twin(nn.Linear):
        def forward(self, input):
            return torch.relu(super().forward(input))

    ours, plain = seeded(lambda: change(LinearReLU(5, 3))), seeded(lambda: change(Twin(5, 3)))
    assert_same(ours, plain, X)


def test_functional_call_and_swapped_state():
    ours = seeded(lambda: LinearReLU(5, 3))
    state = {name: 2 * value for name, value in ours.state_dict().items()}
    expected = torch.relu(nn.functional.linear(X, state["weight"], state["bias"]))
    torch.testing.assert_close(torch.func.functional_call(ours, state, (X,)), expected)


@pytest.mark.filterwarnings("ignore")
def test_quantization_leaves_it_alone():
    """Its default mappings go by the exact type: what it does not know it leaves as it is."""
    quantization = pytest.importorskip("torch.ao.quantization")
    model = nn.Sequential(Linear(5, 8, activation="relu"), nn.Linear(8, 3)).eval()
    before = model(X)
    quantized = quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    assert type(quantized[0]) is LinearActivation and type(quantized[1]) is not nn.Linear
    torch.testing.assert_close(quantized(X), before, atol=0.1, rtol=0.1)


def test_train_step_sees_an_activation_that_is_set():
    def outcome(step):
        torch.manual_seed(0)
        model = nn.Sequential(Linear(5, 8), Linear(8, 3))
        optimizer = mlp_ext.optim.SGD(model.parameters(), lr=0.1)
        run = step(model, optimizer)
        for i in range(4):
            if i == 2:
                model[0].activation = "tanh"
            run()
        return model.state_dict()

    target = torch.tensor([0, 1, 2, 0])

    def loop(model, optimizer):
        def run():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X), target).backward()
            optimizer.step()

        return run

    def fused(model, optimizer):
        step = mlp_ext.TrainStep(model, nn.functional.cross_entropy, optimizer)
        return lambda: step(X, target)

    torch.testing.assert_close(outcome(fused), outcome(loop))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted():
    model = nn.Sequential(Linear(5, 8), Linear(8, 8, activation="gelu"), LinearReLU(8, 3))
    torch.testing.assert_close(torch.jit.script(model)(X), model(X))
    torch.testing.assert_close(torch.jit.trace(model, X)(X), model(X))
