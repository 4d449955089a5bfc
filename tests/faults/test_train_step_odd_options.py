"""Options of layers and optimizers that are changed to something odd after some steps: the loop's
result, or its type of error, with nothing changed and the option and its value named."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from train_twins import assert_same, snapshot

from mlp_ext import TrainStep, optim

X, Y = torch.randn(8, 4, dtype=torch.float64), torch.randint(3, (8,))


def model():
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.0), nn.LayerNorm(6), nn.Linear(6, 3)
    ).double()


def both(change, kind=torch.optim.SGD, **options):
    """What the step and the loop come to after `change(model, optimizer)`; an error or a loss."""
    ours = model()
    results = []
    for one in (ours, copy.deepcopy(ours)):
        optimizer = kind(one.parameters(), lr=0.1, **options)
        step = TrainStep(one, F.cross_entropy, optimizer)

        def loop(one=one, optimizer=optimizer):
            optimizer.zero_grad()
            loss = F.cross_entropy(one(X), Y)
            loss.backward()
            optimizer.step()
            return loss.detach()

        takes = loop if results else lambda step=step: step(X, Y)
        takes()
        change(one, optimizer)
        before = snapshot(step)
        try:
            results.append(takes())
        except Exception as error:  # whatever the loop raises
            results.append(error)
            if one is ours:
                assert_same(before, snapshot(step))
    return results


def set_on(place, **attributes):
    return lambda model, optimizer: [setattr(model[place], *item) for item in attributes.items()]


NORM, DROPOUT, LAYER_NORM = 1, 2, 3
SAME_ERROR = {
    "eps of 0": (set_on(NORM, eps=0.0), "eps"),
    "negative eps": (set_on(NORM, eps=-1), "eps"),
    "eps is a text": (set_on(NORM, eps="x"), "eps of '1' is 'x'"),
    "eps is None": (set_on(LAYER_NORM, eps=None), "eps of '3' is None"),
    "momentum": (set_on(NORM, momentum="x"), "momentum of '1' is 'x'"),
    "training is None": (
        set_on(DROPOUT, training=None),
        "the training of the Dropout at or behind '1' is None, no bool",
    ),
    "training is a number": (set_on(DROPOUT, training=0), "behind '1' is 0, no bool"),
    "p": (set_on(DROPOUT, p=2), "between 0 and 1, but got 2"),
    "p is NaN": (set_on(DROPOUT, p=float("nan")), "between 0 and 1, but got nan"),
    "p in evaluation": (set_on(DROPOUT, p=-1.0, training=False), "between 0 and 1, but got -1"),
    "p is NaN in evaluation": (set_on(DROPOUT, p=float("nan"), training=False), "but got nan"),
    "p is a text in evaluation": (
        set_on(DROPOUT, p="x", training=False),
        "the p of the Dropout at or behind '1' is 'x'",
    ),
    "shape is no tuple": (set_on(LAYER_NORM, normalized_shape=6), "normalized_shape of '3' is 6"),
    "shape of texts": (set_on(LAYER_NORM, normalized_shape=("x",)), "normalized_shape of '3'"),
    "shape of floats": (set_on(LAYER_NORM, normalized_shape=(6.0,)), "normalized_shape of '3'"),
    "empty shape": (set_on(LAYER_NORM, normalized_shape=()), "normalized_shape of '3'"),
    "two dimensions": (set_on(LAYER_NORM, normalized_shape=(6, 1)), "normalized_shape of '3'"),
    "another shape": (set_on(LAYER_NORM, normalized_shape=(7,)), "weight of '3'"),
}
SAME_LOSS = {
    "num_features is a text": set_on(NORM, num_features="x"),
    "num_features": set_on(NORM, num_features=7),
    "num_features without weights": lambda model, optimizer: [
        setattr(model[NORM], name, None) for name in ("weight", "bias", "num_features")
    ],
    "training is None": set_on(NORM, training=None),
    "training is a tensor": set_on(NORM, training=torch.tensor(True)),
    "eps is an int": set_on(NORM, eps=1),
    "eps of 0 in evaluation": set_on(NORM, eps=0.0, training=False),
    "momentum of 2": set_on(NORM, momentum=2),
    "shape is a list": set_on(LAYER_NORM, normalized_shape=[6]),
    "groups are cleared": lambda model, optimizer: optimizer.param_groups.clear(),
    "parameters are cleared": lambda model, optimizer: optimizer.param_groups[0]["params"].clear(),
}


@pytest.mark.parametrize("change, match", SAME_ERROR.values(), ids=SAME_ERROR)
def test_same_error(change, match):
    ours, theirs = both(change)
    assert isinstance(ours, Exception) and type(ours) is type(theirs), (ours, theirs)
    assert match in str(ours)


@pytest.mark.parametrize("change", SAME_LOSS.values(), ids=SAME_LOSS)
def test_same_loss(change):
    torch.testing.assert_close(*both(change), rtol=1e-9, atol=1e-9)


def in_group(**options):
    return lambda model, optimizer: optimizer.param_groups[0].update(options)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    "name, change, kind, match",
    [
        ("Adam", in_group(amsgrad=True), KeyError, "no 'max_exp_avg_sq', which amsgrad calls for"),
        ("RMSprop", in_group(centered=True), KeyError, "no 'grad_avg', which centered calls for"),
        (
            "RMSprop",
            in_group(momentum=0.5),
            KeyError,
            "'momentum_buffer', which momentum calls for",
        ),
        ("Adam", in_group(lr="x"), TypeError, "the optimizer's lr is 'x', no number"),
        ("Adam", in_group(weight_decay=None), TypeError, "optimizer's weight_decay is None, no"),
        ("Adam", in_group(betas=("x", 0.9)), TypeError, "the optimizer's betas is 'x', no number"),
        ("SGD", in_group(weight_decay=[1]), TypeError, "optimizer's weight_decay is a list, no"),
        ("Adam", lambda model, optimizer: optimizer.param_groups[0].pop("lr"), KeyError, "lr"),
        ("Adam", lambda model, optimizer: optimizer.param_groups[0].clear(), KeyError, ""),
    ],
)
def test_of_the_optimizer(name, change, kind, match, own):
    ours, theirs = both(change, getattr(optim if own else torch.optim, name))
    assert type(ours) is kind and type(theirs) is kind, (ours, theirs)
    assert match in str(ours)


@pytest.mark.parametrize("option", ["lr", "weight_decay"])
def test_an_option_whose_memory_is_freed(option):
    """torch reads it at the null address."""
    one = model()
    step = TrainStep(one, F.cross_entropy, torch.optim.SGD(one.parameters(), lr=0.1))
    step(X, Y)
    value = torch.tensor(0.1)
    step.optimizer.param_groups[0][option] = value
    step(X, Y)
    value.untyped_storage().resize_(0)
    before = snapshot(step)
    with pytest.raises(RuntimeError, match=f"memory of the optimizer's {option} .* has been freed"):
        step(X, Y)
    assert_same(before, snapshot(step))


@pytest.mark.parametrize("flag", ["capturable", "differentiable"])
def test_a_flag_is_named(flag):
    one = model()
    step = TrainStep(one, F.cross_entropy, torch.optim.Adam(one.parameters()))
    step(X, Y)
    step.optimizer.param_groups[0][flag] = True
    match = f"does not take optimizers with {flag}=True"
    with pytest.raises(ValueError, match=match):
        step(X, Y)
    with pytest.raises(ValueError, match=match):
        TrainStep(one, F.cross_entropy, step.optimizer)
