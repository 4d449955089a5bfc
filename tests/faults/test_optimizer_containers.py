"""Containers that torch.optim's loops take: mlp_ext.optim and clip_grad_norm_ take them too."""

import collections
import types

import pytest
import torch
from cases import OPTIMIZERS, assert_close, assert_same_outcome, build, classes, set_gradients
from cases import optimizer_parameters as parameters

from mlp_ext import optim
from mlp_ext.nn.utils import clip_grad_norm_

MODULES = (optim, torch.optim)


class Doubled(dict):
    """A dict that answers in a way of its own."""

    def __getitem__(self, key):
        value = super().__getitem__(key)
        return 2 * value if key == "lr" else value


class Backwards(list):
    def __iter__(self):
        return reversed(list(super().__iter__()))


class OnlyLast(list):
    def __iter__(self):
        return iter([self[-1]])


class Plain(dict):
    pass


def of_groups(kind):
    def change(optimizer):
        optimizer.param_groups = kind(optimizer.param_groups)

    return change


def of_each_group(kind):
    def change(optimizer):
        optimizer.param_groups[:] = [kind(group) for group in optimizer.param_groups]

    return change


def of_params(kind):
    def change(optimizer):
        for group in optimizer.param_groups:
            group["params"] = kind(group["params"])

    return change


def of_state(kind):
    def change(optimizer):
        optimizer.state = kind(optimizer.state)

    return change


def of_each_state(kind):
    def change(optimizer):
        for p in [*optimizer.state]:
            optimizer.state[p] = kind(optimizer.state[p])

    return change


def numbers_for_tensors(optimizer):
    for own in optimizer.state.values():
        for key, value in own.items():
            if isinstance(value, torch.Tensor) and key != "step":
                own[key] = 0.5


def keys(params):
    return dict.fromkeys(params).keys()


def defaults(state):
    return collections.defaultdict(dict, state)


CHANGES = {
    **{
        f"groups {k.__name__}": of_groups(k)
        for k in (tuple, collections.deque, Backwards, OnlyLast)
    },
    **{
        f"group {k.__name__}": of_each_group(k)
        for k in (collections.UserDict, collections.OrderedDict, Doubled, Plain)
    },
    "group proxy": of_each_group(types.MappingProxyType),
    **{f"params {k.__name__}": of_params(k) for k in (tuple, collections.deque, keys, OnlyLast)},
    **{
        f"state {k.__name__}": of_state(k)
        for k in (dict, defaults, collections.UserDict, collections.OrderedDict, Plain)
    },
    **{
        f"own {k.__name__}": of_each_state(k)
        for k in (collections.UserDict, collections.OrderedDict, Plain)
    },
    "own numbers": numbers_for_tensors,
}


@classes
@pytest.mark.parametrize("change", CHANGES)
def test_containers(name, change):
    def steps(module):
        params = parameters()
        optimizer = build(module, name, [{"params": params[:2]}, {"params": params[2:]}])
        for step in range(4):
            set_gradients(params, step)
            if step == 2:
                CHANGES[change](optimizer)
            optimizer.step()
        set_gradients(params[:1], 0)
        optimizer.zero_grad()
        assert all(p.grad is None for p in params) or "OnlyLast" in change
        return params

    assert_same_outcome(change, *(lambda m=m: steps(m) for m in MODULES), 1e-12, message=True)


@classes
def test_generators_are_not_used_up(name):
    """torch's step goes through them once."""

    def steps(module):
        params = parameters()
        optimizer = build(module, name, params)
        set_gradients(params, 0)
        optimizer.step()
        optimizer.param_groups[0]["params"] = (p for p in params)
        optimizer.step()
        optimizer.param_groups[0]["params"] = (p for p in params)
        optimizer.zero_grad()
        assert all(p.grad is None for p in params)
        return params

    assert_same_outcome("", *(lambda m=m: steps(m) for m in MODULES), 1e-12, message=True)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_that_makes_no_entries(name):
    """A plain dict: KeyError from the first step, which has changed nothing."""
    params = parameters()
    for module in MODULES:
        optimizer = build(module, name, params)
        known = params[0]
        optimizer.state = {known: dict(optimizer.state.get(known, {}))}
        before = [p.detach().clone() for p in params]
        set_gradients(params, 0)
        with pytest.raises(KeyError):
            optimizer.step()
        if module is optim:
            assert_close(name, [p.detach() for p in params], before, 0)
            assert "momentum_buffer" not in optimizer.state[known] or name != "SGD"
            assert optimizer.state[known].get("step", 0) == 0


def single(params):
    return params[0]


GIVEN = {k.__name__: k for k in (list, tuple, iter, set, collections.deque, keys, single)}


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("without", [(), (0,), (1, 2), (0, 1, 2)])
def test_clip_grad_norm(given, foreach, without):
    def clipped(function):
        params = parameters()
        set_gradients(params, 0)
        for i in without:
            params[i].grad = None
        norm = function(GIVEN[given](params), 0.5, foreach=foreach)
        return [norm, *(p.grad for p in params if p.grad is not None)]

    functions = (clip_grad_norm_, torch.nn.utils.clip_grad_norm_)
    assert_same_outcome("", *(lambda f=f: clipped(f) for f in functions), 1e-12, message=True)
