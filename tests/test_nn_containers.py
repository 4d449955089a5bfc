"""mlp_ext.nn against torch.nn: Sequential as a container, MLP, CrossEntropyLoss.

Linear: test_nn.py; hooks, surgery and flags of fused stacks: test_fusion.py.
"""

import math
from collections import OrderedDict

import pytest
import torch
from cases import ACTIVATIONS
from torch import nn
from twins import ACTIVATION_MODULES as MODULES
from twins import COPIES, assert_same, same_state, seeded

from mlp_ext.nn import MLP, CrossEntropyLoss, Sequential

# Sequential as a container -----------------------------------------------------------------------


def layers() -> list[nn.Module]:
    return [nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)]


def test_sequential_takes_an_ordered_dict():
    named = OrderedDict(zip(["in", "act", "mid", "act2", "out"], layers(), strict=True))
    ours, torchs = Sequential(named), nn.Sequential(named)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    assert ours.mid is named["mid"]
    x = torch.randn(2, 4)
    torch.testing.assert_close(ours(x), torchs(x))


def test_sequential_containers_operations_stay_ours():
    children = layers()
    ours = Sequential(*children)
    part = ours[1:3]
    assert type(part) is Sequential and list(part) == children[1:3]
    assert list(part._modules) == list(nn.Sequential(*children)[1:3]._modules)
    assert ours[-1] is children[-1] and len(ours) == 5 and list(ours) == children
    for whole in (ours + ours, ours + nn.Sequential(*children), 2 * ours, ours * 2):
        assert type(whole) is Sequential and list(whole) == children * 2
        assert list(whole._modules) == [str(i) for i in range(10)]
    extra = nn.Sigmoid()
    assert ours.append(extra) is ours and ours[5] is extra
    ours.insert(1, extra)
    assert list(ours) == [children[0], extra, *children[1:], extra]
    ours += nn.Sequential(extra)
    assert type(ours) is Sequential and len(ours) == 8
    del ours[1], ours[-2:]
    assert list(ours) == children and list(ours._modules) == [str(i) for i in range(5)]
    assert ours.pop(4) is children[4] and ours.extend([extra])[4] is extra
    with pytest.raises(ValueError, match="Sequential"):
        ours + [extra]


def test_empty_sequential_returns_its_input():
    x = torch.randn(2)
    assert Sequential()(x) is x


def test_sequential_takes_what_its_first_child_takes():
    class Pair(nn.Module):
        def forward(self, pair):
            return pair[0] + pair[1]

    ours = Sequential(Pair(), *layers())
    x = torch.randn(2, 4)
    torch.testing.assert_close(ours((x, x)), nn.Sequential(*ours)((x, x)))
    with pytest.raises(TypeError):
        ours(x, x)


class Logged(torch.Tensor):
    """A subclass that notes which functions of torch are called on it."""

    calls: list = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.calls.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("what", ["input", "weight", "bias"])
def test_sequential_lets_tensor_subclasses_see_every_function(what):
    calls = []
    for kind in (Sequential, nn.Sequential):
        model, x = seeded(lambda kind=kind: kind(*layers())), torch.ones(2, 4)
        if what == "input":
            x = x.as_subclass(Logged)
        else:
            plain = getattr(model[2], what).detach()
            setattr(model[2], what, nn.Parameter(plain.as_subclass(Logged)))
        Logged.calls = []
        output = model(x)
        calls.append((type(output), list(Logged.calls)))
    assert calls[0] == calls[1] and "linear" in calls[0][1]


# MLP ---------------------------------------------------------------------------------------------


def test_mlp_is_the_sequential_written_by_hand():
    ours = seeded(lambda: MLP([4, 6, 5, 3], dropout=0.25, final_activation="sigmoid"))
    torchs = seeded(
        lambda: nn.Sequential(
            nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.25),
            nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.25),
            nn.Linear(5, 3), nn.Sigmoid(),
        )
    )  # fmt: skip
    assert same_state(ours, torchs)
    assert repr(ours) == repr(torchs).replace("Sequential(", "MLP(")
    for training in (True, False):
        assert_same(ours.train(training), torchs.train(training), torch.randn(7, 4))
    torchs.load_state_dict(ours.state_dict())
    ours.load_state_dict(torchs.state_dict())


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_mlp_activations(activation):
    ours = MLP((3, 5, 2), activation=activation, final_activation=activation, dtype=torch.float64)
    form = [] if activation is None else [MODULES[activation]()]
    torchs = nn.Sequential(ours[0], *form, ours[1 + len(form)], *form)
    assert repr(list(ours)) == repr(list(torchs))
    x = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(ours(x), torchs(x))


def test_mlp_options():
    ours = MLP(torch.Size([3, 2]), bias=False, dtype=torch.bfloat16, device="meta")
    assert [type(child) for child in ours] == [nn.Linear]
    assert ours[0].bias is None and ours[0].weight.dtype == torch.bfloat16
    assert ours[0].weight.is_meta
    sliced = MLP([3, 4, 2])[:2]
    assert type(sliced) is Sequential and sliced(torch.randn(1, 3)).shape == (1, 4)


@pytest.mark.parametrize(
    "error, sizes, options",
    [
        (ValueError, [], {}),
        (ValueError, [3], {}),
        (ValueError, [3, 0, 2], {}),
        (ValueError, [3, -1], {}),
        (TypeError, [3, 2.5], {}),
        (TypeError, 3, {}),
        (ValueError, [3, 2], {"dropout": -0.1}),
        (ValueError, [3, 2], {"dropout": 1.1}),
        (ValueError, [3, 2], {"dropout": math.nan}),
        (ValueError, [3, 2], {"activation": "swish"}),
        (ValueError, [3, 2], {"final_activation": "swish"}),
    ],
    ids=str,
)
def test_mlp_refuses(error, sizes, options):
    state = torch.get_rng_state()
    with pytest.raises(error):
        MLP(sizes, **options)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("how", COPIES)
def test_mlp_copies(how):
    ours = MLP([4, 5, 3])
    x = torch.randn(2, 4)
    ours(x)
    other = COPIES[how](ours)
    assert type(other) is MLP and same_state(ours, other)
    assert torch.equal(other(x), ours(x))
    assert vars(other).keys() == vars(nn.Sequential()).keys()  # a call leaves nothing behind


# CrossEntropyLoss --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "sum"},
        {"reduction": "none"},
        {"ignore_index": 2},
        {"label_smoothing": 0.1},
        {"weight": torch.tensor([0.5, 1.0, 2.0, 0.0])},
    ],
    ids=str,
)
def test_cross_entropy_loss(options):
    ours, torchs = CrossEntropyLoss(**options), nn.CrossEntropyLoss(**options)
    assert isinstance(ours, nn.CrossEntropyLoss) and repr(ours) == repr(torchs)
    assert same_state(ours, torchs)
    target = torch.tensor([0, 1, 2, 3, 2])
    for shape, labels in (((5, 4), target), ((4,), target[1]), ((5, 4), torch.rand(5, 4))):
        if labels.is_floating_point() and "ignore_index" in options:
            continue  # PyTorch has no such thing
        logits = torch.randn(shape)
        left, right = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        a, b = ours(left, labels), torchs(right, labels)
        torch.testing.assert_close(a, b)
        a.sum().backward()
        b.sum().backward()
        torch.testing.assert_close(left.grad, right.grad)


def test_cross_entropy_loss_refuses_as_torch_does():
    with pytest.raises(IndexError):
        CrossEntropyLoss()(torch.randn(2, 3), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="batch_size"):
        CrossEntropyLoss()(torch.randn(2, 3), torch.tensor([0, 1, 2]))
