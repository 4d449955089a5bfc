"""What TrainStep refuses besides models: optimizers, options, and calls, which must then change
nothing at all."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook
from train_twins import assert_same, draw, net, snapshot

from mlp_ext import TrainStep, optim

SIZES = (6, 8, 3)
sgd = torch.optim.SGD


def of_another_model(model):
    return optim.Adam(net(SIZES).parameters())


def duplicated(model):
    optimizer = sgd(model.parameters(), 0.1)
    optimizer.param_groups[0]["params"].append(model[0].weight)
    return optimizer


def hooked(model):
    optimizer = sgd(model.parameters(), 0.1)
    optimizer.register_step_pre_hook(lambda *args: None)
    return optimizer


def frozen(model):
    model.requires_grad_(False)
    return sgd(model.parameters(), 0.1)


class OwnSGD(torch.optim.SGD):
    pass


OPTIMIZERS = {
    "Rprop": lambda m: torch.optim.Rprop(m.parameters()),
    "LBFGS": lambda m: torch.optim.LBFGS(m.parameters()),
    "ASGD": lambda m: torch.optim.ASGD(m.parameters()),
    "a subclass": lambda m: OwnSGD(m.parameters(), 0.1),
    "none": lambda m: None,
    "the parameters": lambda m: list(m.parameters()),
    "differentiable": lambda m: sgd(m.parameters(), 0.1, differentiable=True),
    "capturable": lambda m: torch.optim.Adam(m.parameters(), capturable=True),
    "another model": of_another_model,
    "duplicated": duplicated,
    "hooked": hooked,
    "frozen": frozen,
}


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_refused_optimizers(build):
    model = net(SIZES)
    with pytest.raises(ValueError, match="TrainStep"):
        TrainStep(model, F.cross_entropy, build(model))


@pytest.mark.parametrize("norm", (0, -1.0, float("nan")))
def test_refused_norms(norm):
    model = net(SIZES)
    with pytest.raises(ValueError, match="clip_grad_norm"):
        TrainStep(model, F.cross_entropy, sgd(model.parameters(), 0.1), clip_grad_norm=norm)


@pytest.mark.parametrize("model", (None, torch.relu, nn.Linear))
def test_no_model(model):
    with pytest.raises(TypeError, match="takes a torch.nn.Module"):
        TrainStep(model, F.cross_entropy, sgd(net(SIZES).parameters(), 0.1))


GOOD = draw("classes", 8, SIZES)
X, CLASSES = GOOD
VALUES = torch.randn(8, 3, dtype=torch.float64)
BAD_CALLS = {
    "features": (X[:, :5], CLASSES),
    "three dimensions": (X[None], CLASSES),
    "float32": (X.float(), CLASSES),
    "float16": (X.half(), CLASSES),
    "integers": (X.long(), CLASSES),
    "complex": (X.to(torch.complex128), CLASSES),
    "meta": (X.to("meta"), CLASSES),
    "sparse": (X.to_sparse(), CLASSES),
    "empty": (X[:0], CLASSES[:0]),
    "a list": (X.tolist(), CLASSES),
    "none": (None, CLASSES),
    "too few targets": (X, CLASSES[:7]),
    "a column of targets": (X, CLASSES[:, None]),
    "probabilities of 2 classes": (X, VALUES[:, :2].softmax(1)),
    "floats": (X, CLASSES.double()),
    "int32": (X, CLASSES.int()),
    "class 3 of 3": (X, torch.tensor([0, 1, 2, 0, 1, 2, 0, 3])),
    "class -1": (X, torch.tensor([-1, 1, 2, 0, 1, 2, 0, 2])),
    "meta targets": (X, CLASSES.to("meta")),
    "no target": (X, None),
}
BAD_VALUES = {
    "a row less": (X, VALUES[:7]),
    "a column less": (X, VALUES[:, :2]),
    "flat": (X, VALUES[:, 0]),
    "empty": (X[:0], VALUES[:0]),
}
OUTSIDE = {"above 1": (X, VALUES.clamp(0, 1) + 0.5), "nan": (X, VALUES * float("nan"))}
CALLS = [(nn.CrossEntropyLoss(), k, v) for k, v in BAD_CALLS.items()]
CALLS += [(nn.MSELoss(), k, v) for k, v in BAD_VALUES.items()]
CALLS += [(nn.BCEWithLogitsLoss(), k, v) for k, v in BAD_VALUES.items()]
CALLS += [(nn.BCELoss(), k, v) for k, v in OUTSIDE.items()]
CALLS += [(nn.CrossEntropyLoss(torch.ones(n).double()), f"{n} weights", GOOD) for n in (2, 4)]
CALLS += [(nn.CrossEntropyLoss(torch.ones(3)), "float32 weights", GOOD)]
CALLS += [(nn.BCEWithLogitsLoss(torch.ones(4).double()), "4 weights", (X, VALUES))]
CALLS += [(nn.BCEWithLogitsLoss(pos_weight=torch.ones(2).double()), "2 pos", (X, VALUES))]


def made(loss, name):
    children = [nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)]
    model = nn.Sequential(*children, *([nn.Sigmoid()] if isinstance(loss, nn.BCELoss) else []))
    model.double()
    options = {"momentum": 0.9} if name == "SGD" else {"amsgrad": True}
    return TrainStep(model, loss, getattr(optim, name)(model.parameters(), lr=0.1, **options))


@pytest.mark.parametrize("case", CALLS, ids=lambda case: f"{type(case[0]).__name__}-{case[1]}")
@pytest.mark.parametrize("name", ("SGD", "Adam"))
@pytest.mark.parametrize("steps", (0, 1))
def test_a_refused_call_changes_nothing(case, name, steps):
    loss, _, (x, y) = case
    step = made(loss, name)
    weighted = any(getattr(loss, name, None) is not None for name in ("weight", "pos_weight"))
    good = GOOD if isinstance(loss, nn.CrossEntropyLoss) else (X, VALUES.sigmoid())
    for _ in range(0 if weighted else steps):
        step(*good)
    before = snapshot(step)
    with pytest.raises((RuntimeError, ValueError, IndexError, TypeError, AttributeError)):
        step(x, y)
    assert_same(before, snapshot(step))
    if not weighted:
        assert step(*good).isfinite()


def test_errors_are_of_pytorchs_types():
    """And say what was wrong."""
    step = made(nn.CrossEntropyLoss(), "SGD")
    for key, kind, text in (
        ("class 3 of 3", IndexError, "Target 3 is out of bounds"),
        ("too few targets", ValueError, "batch_size"),
        ("features", RuntimeError, r"expected \(batch, 6\)"),
        ("float32", RuntimeError, "Float|Double"),
        ("empty", ValueError, "empty batch"),
        ("floats", RuntimeError, "Long"),
    ):
        with pytest.raises(kind, match=text):
            step(*BAD_CALLS[key])


@pytest.mark.parametrize(
    "key", ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step", "lr", "betas", "capturable")
)
@pytest.mark.parametrize("value", ("shape", "dtype", "no tensor"))
def test_a_refused_state_or_option_changes_nothing(key, value):
    step = made(nn.CrossEntropyLoss(), "Adam")
    step(*GOOD)
    if key in ("lr", "betas", "capturable"):
        given = {"lr": "0.1", "betas": (0.9, torch.tensor(0.9)), "capturable": True}
        step.optimizer.param_groups[0][key] = given[key]
    else:
        state = step.optimizer.state[step.model[3].bias]
        old = state[key]
        news = {"shape": old.new_zeros(7), "dtype": old.to(torch.int64), "no tensor": 7}
        state[key] = news[value]
    before = snapshot(step)
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        step(*GOOD)
    assert_same(before, snapshot(step))


def test_state_is_made_for_all_or_none():
    """A group that is refused stands behind one whose state is still to be made."""
    model = net(SIZES)
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters()}]
    step = TrainStep(model, F.cross_entropy, torch.optim.Adam(groups))
    step.optimizer.param_groups[1]["lr"] = "0.1"
    with pytest.raises(TypeError, match="optimizer's lr is '0.1', no number"):
        step(*GOOD)
    assert not step.optimizer.state


LATER = {
    "module": lambda step: step.model[1].register_forward_hook(lambda *args: None),
    "module, with kwargs": lambda step: step.model.register_forward_hook(
        lambda *args: None, with_kwargs=True
    ),
    "pre": lambda step: step.model.register_forward_pre_hook(lambda *args: None),
    "backward": lambda step: step.model[0].register_full_backward_hook(lambda *args: None),
    "backward pre": lambda step: step.model[0].register_full_backward_pre_hook(lambda *args: None),
    "optimizer": lambda step: step.optimizer.register_step_post_hook(lambda *args: None),
    "optimizer pre": lambda step: step.optimizer.register_step_pre_hook(lambda *args: None),
    "loss": lambda step: step.loss_fn.register_forward_hook(lambda *args: None),
    "all modules": lambda step: nn.modules.module.register_module_forward_hook(lambda *args: None),
    "all optimizers": lambda step: register_optimizer_step_post_hook(lambda *args: None),
}


@pytest.mark.parametrize("register", LATER.values(), ids=LATER.keys())
def test_hooks_registered_later(register):
    step = made(nn.CrossEntropyLoss(), "SGD")
    step(*GOOD)
    before = snapshot(step)
    handle = register(step)
    try:
        with pytest.raises(RuntimeError, match="hook"):
            step(*GOOD)
        assert_same(before, snapshot(step))
        with pytest.raises(ValueError, match="hook"):
            TrainStep(step.model, step.loss_fn, step.optimizer)
    finally:
        handle.remove()
    step(*GOOD)


def test_everything_frozen_later():
    """The loop raises; a crash would take pytest along, hence another process."""
    code = """
import torch, mlp_ext
torch.set_num_threads(2)
model = torch.nn.Sequential(torch.nn.Linear(400, 350), torch.nn.Tanh(), torch.nn.Linear(350, 9))
step = mlp_ext.TrainStep(model, torch.nn.MSELoss(), torch.optim.SGD(model.parameters(), 0.1))
batch = torch.randn(40, 400), torch.randn(40, 9)
step(*batch)
model.requires_grad_(False)
for batch in (batch, (torch.randn(1, 400), torch.randn(1, 9))):
    try:
        step(*batch)
    except RuntimeError as error:
        print("refused:", error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run
    assert run.stdout.count("refused") == 2


@pytest.mark.parametrize("p", (-0.1, 1.5, float("nan")))
def test_a_probability_set_later(p):
    step = made(nn.CrossEntropyLoss(), "SGD")
    step.model[2].p = p
    before = snapshot(step)
    with pytest.raises((ValueError, RuntimeError), match="probability"):
        step(*GOOD)
    assert_same(before, snapshot(step))


CONTEXTS = {
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS.keys())
@pytest.mark.parametrize("name", ("SGD", "Adam"))
def test_contexts_in_which_the_loop_does_something_else(context, name):
    step = made(nn.CrossEntropyLoss(), name)
    before = snapshot(step)
    with context(), pytest.raises(RuntimeError, match="TrainStep"):
        step(*GOOD)
    assert_same(before, snapshot(step))
    step(*GOOD)


def test_schedulers_that_need_a_step_keep_working():
    step = made(nn.CrossEntropyLoss(), "SGD")
    scheduler = lr_scheduler.OneCycleLR(step.optimizer, 0.1, total_steps=5)
    rates = []
    for _ in range(4):
        step(*GOOD)
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    assert len(set(rates)) == 4
