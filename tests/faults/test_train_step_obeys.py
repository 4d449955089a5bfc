"""What code around a TrainStep has changed, or listens for, is obeyed or refused."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from train_twins import Twins, assert_same, make, net, snapshot

from mlp_ext import TrainStep, optim

X, Y = torch.randn(8, 4), torch.randint(3, (8,))


class SomeFunctionMode(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class SomeDispatchMode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def made(kind=torch.optim.Adam):
    model = net((4, 6, 3), nn.ReLU, dtype=torch.float32)
    return TrainStep(model, F.cross_entropy, kind(model.parameters(), lr=0.1))


def refuses(step, match, x=X, y=Y):
    before = snapshot(step)
    with pytest.raises((RuntimeError, ValueError), match=match):
        step(x, y)
    assert_same(before, snapshot(step))


@pytest.mark.parametrize(
    "mode, match",
    (
        (torch.no_grad, "under no_grad"),
        (torch.inference_mode, "under inference_mode"),
        (lambda: torch.autograd.set_detect_anomaly(True), "detect_anomaly"),
        (lambda: torch.autocast("cpu"), "autocast"),
        (
            lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t),
            "saved_tensors_hooks",
        ),
        (SomeFunctionMode, "TorchFunctionMode is active .SomeFunctionMode"),
        (SomeDispatchMode, "TorchDispatchMode is active .SomeDispatchMode"),
    ),
)
@pytest.mark.parametrize("steps", (0, 1))
def test_modes(mode, match, steps):
    step = made()
    for _ in range(steps):
        step(X, Y)
    with mode():
        refuses(step, match)
    assert step(X, Y).isfinite()


def test_a_default_device_is_no_mode_that_matters():
    step = made()
    with torch.device("cpu"):
        assert step(X, Y).isfinite()


def test_inference_tensors():
    with torch.inference_mode():
        x, y, weights = X.clone(), Y.clone(), nn.Linear(4, 3)
    step = made()
    refuses(step, "an input that was made under inference_mode", x, Y)
    refuses(step, "a target that was made under inference_mode", X, y)
    step = TrainStep(weights, F.cross_entropy, torch.optim.SGD(weights.parameters(), 0.1))
    with pytest.raises(RuntimeError, match="weight .* was made under inference_mode"):
        step(X, Y)


@pytest.mark.parametrize(
    "owner, name",
    (
        (F, "linear"),
        (F, "relu"),
        (F, "cross_entropy"),
        (nn.Sequential, "forward"),
        (nn.Linear, "forward"),
        (nn.ReLU, "__call__"),
        (nn.Module, "__call__"),
    ),
)
@pytest.mark.parametrize("steps", (0, 1))
def test_patches(owner, name, steps, monkeypatch):
    step = made()
    for _ in range(steps):
        step(X, Y)
    original = getattr(owner, name)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, functools.wraps(original)(lambda *a, **k: original(*a, **k)))
        refuses(step, f"{name} is patched")
    assert step(X, Y).isfinite()


def accumulate_grad(parameter):
    return parameter.expand_as(parameter).grad_fn.next_functions[0][0]


@pytest.mark.parametrize("kind", ("register_hook", "register_prehook"))
@pytest.mark.parametrize("later", (False, True))
def test_hooks_on_accumulate_grad(kind, later):
    step = made()
    if later:
        step(X, Y)
    node = accumulate_grad(step.model[0].bias)
    assert step(X, Y).isfinite()  # it is there, and nobody listens
    handle = getattr(node, kind)(lambda *grads: None)
    refuses(step, "AccumulateGrad node of the bias of '0'")
    handle.remove()
    assert step(X, Y).isfinite()


def counting(function, calls):
    @functools.wraps(function)
    def count(*args, **kwargs):
        calls.append(function)
        return function(*args, **kwargs)

    return count


@pytest.mark.parametrize("kind", (torch.optim.Adam, optim.Adam))
@pytest.mark.parametrize("name", ("step", "zero_grad"))
@pytest.mark.parametrize("on", ("instance", "class"))
def test_patched_optimizers(kind, name, on, monkeypatch):
    step, calls = made(kind), []
    step(X, Y)
    owner = step.optimizer if on == "instance" else kind
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, counting(getattr(owner, name), calls))
        refuses(step, f"optimizer's {name} is patched")
        with pytest.raises(ValueError, match=f"{name} is patched"):
            TrainStep(step.model, F.cross_entropy, step.optimizer)
    assert step(X, Y).isfinite()


@pytest.mark.parametrize("own", (False, True))
@pytest.mark.parametrize("later", (False, True))
def test_schedulers_wrap_step_and_change_nothing(own, later):
    """They look whether optimizer.step() was called before them, by a wrapper on the instance."""
    maker = make("Adam", own=own, lr=0.1)
    schedulers = []

    def scheduled(model, plain):
        optimizer = maker(model, plain)
        schedulers.append(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5))
        return optimizer

    twins = Twins(
        net((4, 6, 3), dtype=torch.float32), F.cross_entropy, maker if later else scheduled
    )
    if later:
        twins.both(X, Y)
        for optimizer in (twins.optimizer, twins.plain_optimizer):
            schedulers.append(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5))
    for _ in range(3):
        twins.both(X, Y)
        for scheduler in schedulers:
            scheduler.step()
    twins.check()


class Seeing(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs or {})
        return result * 3 if func is F.linear else result


@pytest.mark.parametrize("place", (0, 1))
def test_subclasses_of_tensor(place):
    step, batch = made(), [X, Y]
    batch[place] = batch[place].as_subclass(Seeing)
    before = snapshot(step)
    with pytest.raises(RuntimeError, match="Seeing, no ordinary tensor"):
        step(*batch)
    assert_same(before, snapshot(step))


@pytest.mark.parametrize("later", (False, True))
def test_a_weight_of_the_loss_that_is_a_parameter(later):
    loss = nn.CrossEntropyLoss(torch.tensor([1.0, 5.0, 9.0]))
    weight = nn.Parameter(torch.tensor([3.0, 0.5, 2.0]), requires_grad=False)
    if not later:
        loss.weight = weight
    twins = Twins(net((4, 6, 3), dtype=torch.float32), loss, make("SGD", lr=0.1))
    if later:
        twins.both(X, Y)
        loss.weight = weight
    twins.both(X, Y)
    twins.check()


def test_options_of_a_partial_of_a_partial():
    inner = functools.partial(F.cross_entropy, label_smoothing=0.0)
    inner.note = "keeps the outer one from being joined with it"
    loss = functools.partial(inner, weight=torch.ones(3))
    twins = Twins(net((4, 6, 3), dtype=torch.float32), loss, make("SGD", lr=0.1))
    twins.both(X, Y)
    inner.keywords["label_smoothing"] = 0.5
    twins.both(X, Y)
    twins.check()


def test_states_that_share_memory():
    """torch counts a step that is one tensor once for each parameter."""
    step = made()
    step(X, Y)
    shared = torch.tensor(10.0)
    for state in step.optimizer.state.values():
        state["step"] = shared
    before = snapshot(step)
    with pytest.raises(RuntimeError, match="share memory"):
        step(X, Y)
    assert_same(before, snapshot(step))
