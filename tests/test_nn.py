"""mlp_ext.nn.Linear against torch.nn.Linear. Containers and losses: test_nn_containers.py; hooks,
surgery and flags of fused stacks: test_fusion.py; compile, fx, func: test_transforms.py.
"""

import pytest
import torch
from cases import ACTIVATIONS
from torch import nn
from torch.nn.utils import parametrizations, prune
from twins import ACTIVATION_MODULES as MODULES
from twins import COPIES, assert_same, same_state, seeded

import mlp_ext
from mlp_ext.nn import Linear, LinearActivation, LinearReLU, Sequential


def after(linear: nn.Module, activation: str | None) -> nn.Module:
    """torch.nn's twin of a Linear with an activation, with the keys of the Linear alone."""

    class Twin(nn.Linear):
        def forward(self, input):
            output = super().forward(input)
            return output if activation is None else MODULES[activation]()(output)

    twin = Twin(1, 1)
    twin.__dict__.update(linear.__dict__)
    twin._parameters = {
        name: None if p is None else nn.Parameter(p.detach().clone())
        for name, p in linear._parameters.items()
    }
    return twin


def test_every_activation_has_a_module_form():
    assert set(MODULES) == set(mlp_ext.functional.ACTIVATIONS)


# Linear ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [None, torch.float64, torch.bfloat16], ids=str)
def test_linear_draws_the_weights_that_torch_draws(bias, dtype):
    ours = seeded(lambda: Linear(7, 5, bias, None, dtype, activation="relu"))
    state = torch.get_rng_state()
    torchs = seeded(lambda: nn.Linear(7, 5, bias, None, dtype))
    assert torch.equal(state, torch.get_rng_state())
    assert same_state(ours, torchs)
    assert ours.weight.dtype == torchs.weight.dtype
    assert (ours.bias is None) == (not bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6)], ids=str)
def test_linear_gives_what_torch_gives(activation, bias, shape):
    ours = seeded(lambda: Linear(6, 4, bias, dtype=torch.float64, activation=activation))
    assert_same(ours, after(ours, activation), torch.randn(shape, dtype=torch.float64))


def test_linear_repr():
    ours = Linear(2, 3, bias=False)
    assert repr(ours) == "Linear(in_features=2, out_features=3, bias=False, activation=None)"
    ours = Linear(2, 3, bias=False, activation="gelu")
    what = "in_features=2, out_features=3, bias=False, activation='gelu'"
    assert repr(ours) == f"LinearActivation({what})"
    assert repr(LinearReLU(1, 2)).startswith("LinearReLU(in_features=1, out_features=2, bias=True")


@pytest.mark.parametrize("wrong", ["swish", "RELU", "", 1, nn.ReLU()], ids=repr)
def test_linear_refuses_an_unknown_activation(wrong):
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="unknown activation"):
        Linear(2, 3, activation=wrong)
    assert torch.equal(state, torch.get_rng_state())


def test_linear_activation_may_be_reassigned():
    ours = seeded(lambda: Linear(6, 4, dtype=torch.float64, activation="relu"))
    x = torch.randn(3, 6, dtype=torch.float64)
    for activation in ("tanh", None, "gelu"):
        ours.activation = activation
        assert_same(ours, after(ours, activation), x)
        assert repr(activation) in repr(ours)


@pytest.mark.parametrize("wrong", ["swish", nn.ReLU()], ids=repr)
@pytest.mark.parametrize("around", [lambda linear: linear, Sequential], ids=["alone", "Sequential"])
def test_linear_refuses_an_unknown_activation_at_the_call(around, wrong):
    linear = Linear(2, 3, activation="relu")
    linear.activation = wrong
    with pytest.raises(ValueError, match="unknown activation"):
        around(linear)(torch.randn(1, 2))


def test_linear_refuses_bad_input_as_torch_does():
    ours, torchs = Linear(4, 3, activation="relu"), nn.Linear(4, 3)
    for bad in (torch.randn(2, 5), torch.randn(2, 4).double(), torch.tensor(1.0), [1.0] * 4, None):
        with pytest.raises((RuntimeError, TypeError)) as expected:
            torchs(bad)
        with pytest.raises(expected.type):
            ours(bad)


def test_linear_state_dict_goes_both_ways():
    ours, torchs = Linear(4, 3, activation="relu"), nn.Linear(4, 3)
    ours.load_state_dict(torchs.state_dict())
    assert same_state(ours, torchs)
    other = nn.Linear(4, 3)
    other.load_state_dict(Linear(4, 3, activation="tanh").state_dict())
    assert not same_state(ours, other)


@pytest.mark.parametrize("how", COPIES)
def test_linear_copies(how):
    ours = Linear(4, 3, activation="silu")
    other = COPIES[how](ours)
    assert (
        type(other) is LinearActivation and other.activation == "silu" and same_state(ours, other)
    )
    x = torch.randn(5, 4)
    assert torch.equal(other(x), ours(x))
    other.activation = None
    assert ours.activation == "silu"


def weight_normed(linear):
    return nn.utils.weight_norm(linear)


def scaled(linear):
    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    nn.utils.parametrize.register_parametrization(linear, "bias", Double())
    return linear


REPARAMETRIZATIONS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old weight_norm": weight_normed,
    "old spectral_norm": nn.utils.spectral_norm,
    "prune": lambda linear: prune.l1_unstructured(linear, "weight", 0.4),
    "bias": scaled,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("how", REPARAMETRIZATIONS)
def test_linear_obeys_reparametrizations(how):
    ours = seeded(lambda: REPARAMETRIZATIONS[how](Linear(6, 4, dtype=torch.float64)))
    torchs = seeded(lambda: REPARAMETRIZATIONS[how](nn.Linear(6, 4, dtype=torch.float64)))
    assert_same(ours, torchs, torch.randn(3, 6, dtype=torch.float64))


def test_linear_runs_its_hooks():
    x, seen = torch.randn(2, 4, requires_grad=True), []
    ours = Linear(4, 3, activation="relu")
    expected = torch.relu(nn.functional.linear(2 * x, ours.weight, ours.bias)) + 1
    ours.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    ours.register_forward_hook(lambda module, args, output: output + 1)
    ours.register_full_backward_hook(lambda module, grads, outputs: seen.append(outputs[0]))
    out = ours(x)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    torch.testing.assert_close(seen, [torch.ones(2, 3)])
