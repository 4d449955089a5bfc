"""Options that are numbers of other types run in the kernels; those that are out of range raise as
torch.optim's step does, or give what it gives."""

import numpy as np
import pytest
import torch
from cases import OPTIMIZERS, assert_same_outcome, build, classes, loop, optimizer_parameters, run

from mlp_ext import optim

MODULES = (optim, torch.optim)


@pytest.fixture
def kernels_only(monkeypatch):
    monkeypatch.setattr(optim, "_take_torchs_step", lambda self: pytest.fail("torch's step"))


def stepped(module, name, options, steps=3):
    params = optimizer_parameters()
    optimizer = build(module, name, params, **(loop(name) if module is torch.optim else {}))
    run(optimizer, params, range(2))
    optimizer.param_groups[0].update(options)
    run(optimizer, params, range(2, 2 + steps))
    return params


def make_options():
    """(id, options, of which classes, largest difference)."""
    made = {
        "float32": (np.float32(0.01), 1e-6),
        "float64": (np.float64(0.01), 1e-12),
        "int64": (np.int64(1), 1e-12),
        "int32": (np.int32(1), 1e-12),
        "tensor32": (torch.tensor(0.01), 1e-6),
        "tensor64": (torch.tensor(0.01, dtype=torch.float64), 1e-12),
    }
    for kind, (value, tolerance) in made.items():
        yield f"lr-{kind}", {"lr": value}, tolerance
        yield f"weight_decay-{kind}", {"weight_decay": value}, tolerance
        if "tensor" not in kind:
            for key in ("eps", "momentum", "dampening", "lr_decay", "momentum_decay"):
                yield f"{key}-{kind}", {key: value}, tolerance
    yield "lr-vector", {"lr": torch.tensor([0.01])}, 1e-6
    yield "betas-list", {"betas": [0.5, 0.6]}, 1e-12
    yield "betas-float64", {"betas": (np.float64(0.5), np.float64(0.6))}, 1e-12
    yield "momentum-False", {"momentum": False, "weight_decay": False}, 1e-12


@classes
@pytest.mark.parametrize("case", [*make_options()], ids=lambda case: case[0])
def test_by_the_kernels(name, case, kernels_only):
    _, options, tolerance = case
    group = build(torch.optim, name, optimizer_parameters()).param_groups[0]
    if not options.keys() & group.keys():
        return
    options = {key: value for key, value in options.items() if key in group}
    assert_same_outcome("", *(lambda m=m: stepped(m, name, options) for m in MODULES), tolerance)


@classes
def test_a_tensor_lr_that_changes_in_place(name, kernels_only):
    def steps(module):
        lr = torch.tensor(0.02, dtype=torch.float64)
        params = optimizer_parameters()
        optimizer = build(module, name, params, lr=lr)
        for step in range(4):
            run(optimizer, params, [step])
            lr.mul_(0.5)
        return params

    assert_same_outcome("", *(lambda m=m: steps(m) for m in MODULES), 1e-12)


BETAS = ((1.0, 0.9), (0.9, 1.0), (0.9, 1.1), (1.1, 0.9), (-0.5, 0.9), (0.9, -0.5), (0.9,))


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("name", ["Adam", "AdamW", "NAdam", "RAdam", "Adamax"])
def test_betas_out_of_range(name, betas):
    outcomes = (lambda m=m: stepped(m, name, {"betas": betas}) for m in MODULES)
    assert_same_outcome(f"{betas}", *outcomes, 1e-12, message=True)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "SGD"])
@pytest.mark.parametrize("step", [-1.0, 0.0, -0.5, 0.5, 2.0**24, 1e30, float("inf"), float("nan")])
def test_odd_counts(name, step):
    def steps(module):
        params = optimizer_parameters()
        optimizer = build(module, name, params)
        run(optimizer, params, range(2))
        optimizer.state[params[1]]["step"].fill_(step)
        run(optimizer, params, range(2, 4))
        return [*params, *(optimizer.state[p]["step"] for p in params)]

    assert_same_outcome(f"{step}", *(lambda m=m: steps(m) for m in MODULES), 1e-6, message=True)


@classes
@pytest.mark.parametrize("lr", [1e39, -1e39, 1e300, float("inf"), float("nan"), 10**400])
def test_more_than_float32(name, lr):
    def steps(module):
        params = optimizer_parameters(torch.float32)
        optimizer = build(module, name, params)
        run(optimizer, params, range(1))
        optimizer.param_groups[0]["lr"] = lr
        run(optimizer, params, range(1, 2))
        return params

    assert_same_outcome(f"{lr}", *(lambda m=m: steps(m) for m in MODULES), 1e-6, message=True)


@classes
def test_an_option_that_is_not_there(name):
    """torch's step says which, and nothing has changed."""
    keys = build(torch.optim, name, optimizer_parameters()).param_groups[0].keys()
    off = {"capturable", "differentiable", "decoupled_weight_decay", "foreach", "fused"}
    for key in keys - off - {"params", "initial_accumulator_value"}:
        params = optimizer_parameters()
        optimizer = build(optim, name, params)
        run(optimizer, params, range(1))
        before = [p.detach().clone() for p in params]
        del optimizer.param_groups[0][key]
        with pytest.raises(KeyError, match=key):
            run(optimizer, params, range(1, 2))
        assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))


def test_a_centered_variance_of_nothing():
    """alpha = 0: NaN for whoever rounds otherwise than torch."""
    assert_same_outcome(
        "", *(lambda m=m: stepped(m, "RMSprop", {"alpha": 0.0}) for m in MODULES), 1e-12
    )
