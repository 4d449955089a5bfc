"""Memory that is gone: RuntimeError with nothing changed, where torch's step reads and writes at
the null address. And steps that fail, or run beside other threads."""

import threading

import pytest
import torch
from cases import OPTIMIZERS, assert_close, build, classes, optimizer_parameters, run, set_gradients

from mlp_ext import optim
from mlp_ext.nn.utils import clip_grad_norm_


def free(tensor):
    tensor.untyped_storage().resize_(0)


def cut(tensor):
    tensor.untyped_storage().resize_(tensor.untyped_storage().nbytes() - 1)


def tensors_of(optimizer, params):
    states = [optimizer.state.get(p, {}).values() for p in params]
    return [*params, *(p.grad for p in params), *(t for state in states for t in state)]


def refused(function, watched):
    """It raises, and leaves those of watched alone that have their memory."""
    there = [t for t in watched if t.untyped_storage().nbytes() == t.numel() * t.element_size()]
    before = [t.detach().clone() for t in there]
    with pytest.raises(RuntimeError, match="has been freed or cut"):
        function()
    assert all(torch.equal(t, b) for t, b in zip(there, before, strict=True))


WHICH = {
    "parameter": lambda optimizer, p: p,
    "gradient": lambda optimizer, p: p.grad,
    **{
        f"state {i}": lambda optimizer, p, i=i: [
            t for t in optimizer.state[p].values() if t.dim()
        ][i]
        for i in range(3)
    },
}
KINDS = {
    "float32": (torch.float32, {}),
    "float64": (torch.float64, {}),
    "bfloat16": (torch.bfloat16, {}),
    "masters": (torch.bfloat16, {"master_weights": True}),
    "by torch's step": (torch.float32, {"lr": torch.tensor(0.1, requires_grad=True)}),
}


@classes
@pytest.mark.parametrize("how", [free, cut])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", WHICH)
def test_step(name, which, kind, how):
    dtype, options = KINDS[kind]
    params = optimizer_parameters(dtype)
    optimizer = build(optim, name, params, **{k: v for k, v in options.items() if k != "lr"})
    run(optimizer, params, range(2))
    optimizer.param_groups[0].update(options)
    set_gradients(params, 2)
    arrays = [t for t in optimizer.state.get(params[1], {}).values() if t.dim()]
    if which.startswith("state") and int(which[-1]) >= len(arrays):
        return  # it has no more
    how(WHICH[which](optimizer, params[1]))
    refused(optimizer.step, tensors_of(optimizer, params))


@classes
@pytest.mark.parametrize("kind", ["float32", "masters"])
@pytest.mark.parametrize("which", ["parameter", "gradient"])
def test_first_step(name, which, kind):
    dtype, options = KINDS[kind]
    params = optimizer_parameters(dtype)
    optimizer = build(optim, name, params, **options)
    set_gradients(params, 0)
    free(WHICH[which](optimizer, params[1]))
    refused(optimizer.step, [*params, *(p.grad for p in params)])
    assert all(state.get("step", 0) == 0 for state in optimizer.state.values())


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "SGD"])
def test_counters_and_a_tensor_lr(name):
    params = optimizer_parameters()
    optimizer = build(optim, name, params)
    run(optimizer, params, range(1))
    free(optimizer.state[params[2]]["step"])
    refused(optimizer.step, tensors_of(optimizer, params))
    params = optimizer_parameters()
    lr = torch.tensor(0.1)
    optimizer = build(optim, name, params, lr=lr)
    set_gradients(params, 0)
    free(lr)
    refused(optimizer.step, params)


@pytest.mark.parametrize("how", [free, cut])
@pytest.mark.parametrize("norm_type", [2.0, 1.0])
def test_clip_grad_norm(how, norm_type):
    params = optimizer_parameters()
    set_gradients(params, 0)
    how(params[1].grad)
    refused(lambda: clip_grad_norm_(params, 0.1, norm_type), [p.grad for p in params])


@pytest.mark.parametrize("how", [free, cut])
@classes
def test_zero_grad(name, how):
    params = optimizer_parameters()
    optimizer = build(optim, name, params)
    set_gradients(params, 0)
    how(params[1].grad)
    refused(lambda: optimizer.zero_grad(set_to_none=False), [p.grad for p in params])
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


@classes
def test_memory_that_a_view_does_not_reach(name):
    """What was cut off is not the parameter's."""
    results = []
    for module in (optim, torch.optim):
        whole = torch.linspace(-1, 1, 20)
        p = torch.nn.Parameter(whole[2:8].view(2, 3).t())
        whole.untyped_storage().resize_(8 * 4)
        empty = torch.nn.Parameter(torch.ones(0, 3))
        free(empty)
        optimizer = build(module, name, [p, empty])
        for _ in range(3):
            p.grad, empty.grad = torch.ones(3, 2), torch.ones(0, 3)
            optimizer.step()
        results.append([p])
    assert_close(name, *results, 1e-6)


@classes
def test_tensors_that_are_swapped(name):
    """torch.utils.swap_tensors asks that nobody else holds them."""
    results = []
    for module in (optim, torch.optim):
        params = optimizer_parameters()
        optimizer = build(module, name, params)
        for step in range(4):
            run(optimizer, params, [step])
            optimizer.zero_grad()
            torch.utils.swap_tensors(params[0], torch.nn.Parameter(params[0].detach() * 2))
            optimizer.param_groups[0]["params"][1] = params[1] = torch.nn.Parameter(
                params[1].detach() * 3
            )
        results.append(params)
    assert_close(name, *results, 1e-12)


@classes
def test_two_threads(name):
    """A step each, while a third gives the parameters other memory: no crash, and states that are
    those of some order of steps."""
    shapes = ((300, 40), (40,), (5, 7))
    params = [torch.nn.Parameter(torch.zeros(s)) for s in shapes]
    optimizer = build(optim, name, params, lr=1e-6, weight_decay=0.0)
    for p in params:
        p.grad = torch.ones_like(p)
    stop, failed = threading.Event(), []

    def stepping():
        try:
            for _ in range(150):
                optimizer.step()
        except Exception as error:
            failed.append(error)

    def moving():
        while not stop.is_set():
            for p in params:
                p.data = p.data.clone()

    threads = [threading.Thread(target=stepping) for _ in range(2)]
    mover = threading.Thread(target=moving)
    for thread in (*threads, mover):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    mover.join()
    assert not failed, failed
    assert all(p.isfinite().all() for p in params)
    for state in optimizer.state.values():
        assert all(t.isfinite().all() for t in state.values())
