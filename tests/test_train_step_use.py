"""TrainStep and what else happens to model and optimizer: eager steps between, loading, copies,
several Python threads; and what a step leaves as it was."""

import copy
import functools
import io
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from train_twins import LAYERS, ROWS, Twins, draw, make, net

from mlp_ext import TrainStep

SMALL = (7, 9, 6, 3)
OPTIMIZERS = {
    "sgd": make("SGD", own=False, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "sgd-own": make("SGD", lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": make("Adam", own=False, lr=3e-3, eps=1e-4, amsgrad=True),
    "adam-fused": make("Adam", own=False, lr=3e-3, eps=1e-4, fused=True),
    "adamw": make("AdamW", lr=3e-3, eps=1e-4, weight_decay=0.1, amsgrad=True),
}
keys = pytest.mark.parametrize("key", OPTIMIZERS)
cuts = pytest.mark.parametrize("shape", (ROWS, LAYERS), ids=("rows", "layers"))


@pytest.mark.parametrize("name", ("SGD", "Adam"))
@pytest.mark.parametrize("loaded", (False, True))
def test_a_scheduler_does_not_warn(name, loaded):
    twins = Twins(net(SMALL), F.cross_entropy, make(name, lr=0.1))
    if loaded:
        twins.eager(*draw("classes", 4, SMALL))
        twins.optimizer.load_state_dict(twins.plain_optimizer.state_dict())
    scheduler = torch.optim.lr_scheduler.StepLR(twins.optimizer, 1)
    twins.step(*draw("classes", 4, SMALL))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step()


@keys
def test_eager_steps_between(key):
    twins = Twins(net(SMALL), F.cross_entropy, OPTIMIZERS[key], clip=1.0)
    for ours in (True, True, False, False, True, False, True, True):
        x, y = draw("classes", 8, SMALL)
        twins.both(x, y) if ours else (twins.eager(x, y), twins.eager(x, y, plain=False))
    twins.check()
    first = Twins(net(SMALL), F.cross_entropy, OPTIMIZERS[key])
    x, y = draw("classes", 8, SMALL)
    first.eager(x, y), first.eager(x, y, plain=False)
    first.run("classes", 8, SMALL, 3)
    first.check()


@keys
def test_loading_in_the_middle(key):
    twins = Twins(net(SMALL), F.cross_entropy, OPTIMIZERS[key])
    pairs = [(twins.model, twins.optimizer), (twins.plain, twins.plain_optimizer)]
    twins.run("classes", 8, SMALL, 5)
    saved = [(copy.deepcopy(m.state_dict()), copy.deepcopy(o.state_dict())) for m, o in pairs]
    twins.run("classes", 8, SMALL, 5)
    for (model, optimizer), (weights, states) in zip(pairs, saved, strict=True):
        model.load_state_dict(weights)
        optimizer.load_state_dict(states)
    twins.check()
    twins.run("classes", 8, SMALL, 5)
    twins.check()


@pytest.mark.parametrize("name", ("SGD", "Adam"))
def test_options_that_need_new_state(name):
    """Momentum or amsgrad turned on later; parameters unfrozen later."""
    twins = Twins(net(SMALL), F.cross_entropy, make(name, lr=0.01))
    for model in (twins.model, twins.plain):
        model[2].requires_grad_(False)
    twins.run("classes", 8, SMALL, 3)
    for model in (twins.model, twins.plain):
        model[2].requires_grad_(True)
    if name == "SGD":
        for optimizer in (twins.optimizer, twins.plain_optimizer):
            optimizer.param_groups[0]["momentum"] = 0.9
    twins.run("classes", 8, SMALL, 3)
    twins.check()


@pytest.mark.parametrize("clip", (None, 1.0))
def test_nan_in_the_data(clip):
    twins = Twins(net(SMALL), F.mse_loss, OPTIMIZERS["sgd"], clip=clip)
    x, y = draw("values", 8, SMALL)
    x[3, 2] = float("nan")
    assert twins.both(x, y).isnan()
    twins.check()


@pytest.mark.parametrize("clip", (None, 0.01))
@keys
def test_objects_versions_and_gradients(key, clip):
    twins = Twins(net(SMALL), F.cross_entropy, OPTIMIZERS[key], clip=clip)
    parameters = list(twins.model.parameters())
    marks = [torch.randn_like(p) for p in parameters]
    for p, mark in zip(parameters, marks, strict=True):
        p.grad = mark
    kept = [mark.clone() for mark in marks]
    x, y = draw("classes", 8, SMALL)
    twins.both(x, y)
    states = [v for p in parameters for v in twins.optimizer.state[p].values() if v is not None]
    before = [t._version for t in (*parameters, *states)]
    loss = twins.model(x).sum()  # its graph has saved the weights
    twins.both(x, y)
    now = [v for p in parameters for v in twins.optimizer.state[p].values() if v is not None]
    assert all(a is b for a, b in zip(states, now, strict=True))
    assert all(a is b for a, b in zip(parameters, twins.model.parameters(), strict=True))
    assert all(t._version > v for t, v in zip((*parameters, *states), before, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    for p, mark, value in zip(parameters, marks, kept, strict=True):
        assert p.grad is mark and torch.equal(mark, value)
    twins.both(x, y, keep_grad=True)
    for p, q in zip(parameters, twins.plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)
    twins.check()


def test_epoch():
    twins = Twins(net(SMALL), F.cross_entropy, OPTIMIZERS["sgd"])
    batches = [draw("classes", rows, SMALL) for rows in (8, 8, 3)]
    expected = sum(twins.eager(x, y).item() for x, y in batches) / 3
    assert twins.step.epoch(batches) == pytest.approx(expected, rel=1e-12)
    twins.check()
    assert twins.step.epoch([]) != twins.step.epoch([])


@pytest.mark.parametrize("copied", (copy.deepcopy, "pickle"))
def test_copies_of_model_and_optimizer(copied):
    def saved(value):
        torch.save(value, file := io.BytesIO())
        return torch.load(io.BytesIO(file.getvalue()), weights_only=False)

    twins = Twins(net(SMALL), F.cross_entropy, OPTIMIZERS["adamw"])
    twins.run("classes", 8, SMALL, 3)
    both = (twins.model, twins.optimizer)
    twins.model, twins.optimizer = (copied if callable(copied) else saved)(both)
    twins.step = TrainStep(twins.model, twins.loss_fn, twins.optimizer)
    twins.run("classes", 8, SMALL, 3)
    twins.check()


def run_threads(bodies):
    errors = []

    def guarded(body):
        try:
            body()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


def test_a_model_that_changes_its_dtype():
    twins = Twins(net(SMALL, dtype=torch.float32), F.cross_entropy, make("SGD", lr=0.1))
    for dtype in (torch.float32, torch.float64, torch.float32):
        twins.model.to(dtype), twins.plain.to(dtype)
        twins.both(*draw("classes", 8, SMALL, dtype))
        twins.check()


def test_hooks_of_a_parameter_registered_later():
    twins = Twins(net(SMALL), F.cross_entropy, OPTIMIZERS["sgd"])
    x, y = draw("classes", 8, SMALL)
    twins.both(x, y)
    handle = twins.model[2].weight.register_hook(lambda grad: 0 * grad)
    with pytest.raises(RuntimeError, match="hook"):
        twins.step(x, y)
    handle.remove()
    twins.both(x, y)
    twins.check()


@cuts
def test_python_threads_with_a_model_each(shape):
    torch.set_num_threads(2)
    rows, sizes = shape
    many = [Twins(net(sizes), F.cross_entropy, OPTIMIZERS["adam"]) for _ in range(3)]
    batches = [draw("classes", rows, sizes) for _ in range(8)]
    run_threads([functools.partial(twins.step.epoch, batches) for twins in many])
    for twins in many:
        for x, y in batches:
            twins.eager(x, y)
        twins.check()


def test_python_threads_with_one_train_step():
    for _ in range(10):
        twins = Twins(net(SMALL), F.cross_entropy, OPTIMIZERS["adam"])
        batches = [draw("classes", 8, SMALL) for _ in range(30)]
        run_threads([functools.partial(twins.step.epoch, batches)] * 2)
        assert {s["step"].item() for s in twins.optimizer.state.values()} == {60}
        assert all(p.isfinite().all() for p in twins.model.parameters())


def test_a_state_that_another_thread_is_making():
    """Half of it is there when this thread reads it: it waits for the other, and reads again."""
    twins = Twins(net(SMALL), F.cross_entropy, OPTIMIZERS["adam"])
    x, y = draw("classes", 8, SMALL)
    p = twins.model[0].weight
    state = twins.optimizer.state[p]
    state["step"], state["exp_avg"] = torch.tensor(0.0), torch.zeros_like(p)
    with twins.step._lock:
        thread = threading.Thread(target=twins.step, args=(x, y))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        state["exp_avg_sq"], state["max_exp_avg_sq"] = torch.zeros(2, *p.shape, dtype=p.dtype)
    thread.join()
    twins.eager(x, y)
    twins.check()


def test_two_train_steps_of_one_model():
    twins = Twins(net(SMALL), F.cross_entropy, OPTIMIZERS["sgd"])
    others = [torch.optim.AdamW(m[2].parameters(), 0.01) for m in (twins.model, twins.plain)]
    second = TrainStep(twins.model, F.cross_entropy, others[0])
    for _ in range(5):
        x, y = draw("classes", 8, SMALL)
        twins.both(x, y)
        second(x, y)
        twins.plain.zero_grad()
        F.cross_entropy(twins.plain(x), y).backward()
        others[1].step()
    twins.check()
