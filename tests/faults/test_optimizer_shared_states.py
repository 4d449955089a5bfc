"""States that two parameters share: torch's step takes one parameter after the other, and so counts
a `step` twice, and moves an average twice."""

import pytest
import torch
from cases import OPTIMIZERS, assert_close, build, classes, optimizer_parameters, run, set_gradients

from mlp_ext import optim


def shared(module, name, key, share):
    """Three steps after `share(params, optimizer, key)`; the parameters and all of their states."""
    params = optimizer_parameters()
    params[2].data = params[2].data.new_full(params[1].shape, 0.5)
    optimizer = build(module, name, params)
    run(optimizer, params, range(2))
    share(params, optimizer, key)
    run(optimizer, params, range(2, 5))
    states = [optimizer.state[p] for p in params]
    return params, [t for state in states for t in state.values() if torch.is_tensor(t)]


def one_tensor(params, optimizer, key):
    optimizer.state[params[2]][key] = optimizer.state[params[1]][key]


def one_memory(params, optimizer, key):
    optimizer.state[params[2]][key] = optimizer.state[params[1]][key].view_as(
        optimizer.state[params[2]][key]
    )


def keys(name):
    params = optimizer_parameters()
    optimizer = build(torch.optim, name, params)
    run(optimizer, params, range(1))
    return [key for key, value in optimizer.state[params[1]].items() if torch.is_tensor(value)]


@pytest.mark.parametrize("share", [one_tensor, one_memory])
@pytest.mark.parametrize("name, key", [(name, key) for name in OPTIMIZERS for key in keys(name)])
def test_two_parameters_share(name, key, share):
    ours, theirs = (shared(module, name, key, share) for module in (optim, torch.optim))
    assert_close(name, ours[0], theirs[0], 1e-6)
    for mine, torchs in zip(ours[1], theirs[1], strict=True):
        assert torch.allclose(mine, torchs, rtol=1e-5, atol=1e-7)


@classes
def test_the_gradient_is_another_parameter(name):
    results = []
    for module in (optim, torch.optim):
        params = [torch.nn.Parameter(torch.linspace(-1, 1, 6)) for _ in range(2)]
        optimizer = build(module, name, params)
        for _ in range(3):
            params[0].grad, params[1].grad = torch.ones(6), params[0].detach()
            optimizer.step()
        results.append(params)
    assert_close(name, *results, 1e-6)


@classes
def test_a_gradient_may_be_shared(name):
    """Nobody writes to it."""
    results = []
    for module in (optim, torch.optim):
        params = optimizer_parameters()[:1] + optimizer_parameters()[:1]
        optimizer = build(module, name, params)
        for step in range(3):
            set_gradients(params, step)
            params[1].grad = params[0].grad
            optimizer.step()
        results.append(params)
    assert_close(name, *results, 1e-6)
