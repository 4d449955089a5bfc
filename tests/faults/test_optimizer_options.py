"""Options that were set after construction, at random: mlp_ext.optim computes what torch.optim
computes, or raises what it raises. A failing case is run again by `compare(name, seed)`."""

import fractions
import math
import random
import warnings

import numpy as np
import pytest
import torch
from cases import OPTIMIZERS, loop, outcome, relative_error

from mlp_ext import optim

ORDINARY = {
    "lr": (0.0, 1e-3, 0.1, 1, -0.01),
    "weight_decay": (0.0, 0, 0.01, 0.5, -0.1),
    "momentum": (0.0, 0, 0.9, 0.5, -0.5, 1.0),
    "dampening": (0.0, 0, 0.3, 1.5, -0.5),
    "betas": ((0.9, 0.999), [0.5, 0.6], (0.0, 0.0), (0, 0.9), (0.9, 0), (0.99, 0.1)),
    "eps": (1e-8, 1e-3, 0.0, 0, -1e-3, 1),
    "alpha": (0.99, 0.5, 0.0, 0.0, 1.0, 1, -0.1, 1.5),
    "lr_decay": (0.0, 0.01, 1, -0.01),
    "momentum_decay": (4e-3, 0.1, 0.0, 0, 1.5, -0.01),
}
FLAGS = {
    "nesterov": (True, False, 0, 1, np.bool_(True), np.bool_(False), "no", None, []),
    "maximize": (True, False, 0, 1, np.bool_(True), np.bool_(False), "no", None, []),
    "amsgrad": (False, 0, np.bool_(False), None),  # with a state for it or without
    "centered": (True, True, False, 0, np.bool_(False), None),
    "decoupled_weight_decay": (True, False, 0, 1, np.bool_(True), np.bool_(False), "no", None),
}
NUMBERS = (
    *(np.float64(0.01), np.float32(0.01), np.int64(1), np.int64(0), np.int32(1), np.float16(0.01)),
    *(np.uint8(1), np.bool_(True), np.array(0.01), np.array([0.01]), np.longdouble(0.01)),
    *(math.inf, -math.inf, math.nan, 1e39, -1e39, 1e300, 1e-50, 10**400, 2**63),
    *(True, False, None, "x", "0.1", [0.1], (0.1,), 1j, 0.1 + 0j, fractions.Fraction(1, 100), {}),
)
TENSORS = (
    *(lambda d=d: torch.tensor(0.01, dtype=d) for d in (torch.float32, torch.float64)),
    *(lambda s=s: torch.full(s, 0.01) for s in ((1,), (1, 1), (2,), (0,))),
    lambda: torch.tensor(0.01, requires_grad=True),
    lambda: torch.tensor(1),
    lambda: torch.tensor(True),
    lambda: torch.tensor(0.01 + 1j),
    lambda: torch.tensor(math.nan),
    lambda: torch.tensor(0.01, device="meta"),
)
BETAS = (
    *((1.0, 0.9), (0.9, 1.0), (1.0, 1.0), (0.9, 1.1), (1.1, 0.9), (-0.1, 0.9), (0.9, -0.1)),
    *((0.9,), (), (0.9, 0.99, 0.5), 0.9, None, "ab", {0.9: 1, 0.99: 2}, (0.9, "x"), (None, 0.9)),
    *((math.nan, 0.9), (0.9, math.inf), (np.float64(0.9), np.float64(0.99)), (True, 0.9)),
    *((np.float32(0.9), np.float32(0.99)), np.array([0.9, 0.99]), (0.9, 1 - 1e-16), (1 - 1e-9, 0.9)),
)
STEPS = (-1.0, 0.0, 0.5, -0.5, -7.0, 2.0**24, 1e30, math.inf, math.nan)
PRODUCTS = (0.0, 1.0, 2.0, -1.0, math.nan, math.inf, 1e30)


def strange(random_, key):
    if key == "betas":
        return random_.choice(BETAS)
    if key in FLAGS:
        return random_.choice((np.array([True, False]), torch.ones(2), torch.tensor(True), 1j, {}))
    made = random_.choice((*NUMBERS, *TENSORS))
    return made() if made in TENSORS else made


def plan(name, seed):
    """What is done to both: (options, counters) before each of a few steps."""
    random_ = random.Random(f"{name} {seed}")
    keys = [key for key in (*ORDINARY, *FLAGS) if key in group_of(name)]
    done = []
    for _ in range(3):
        options = {
            key: random_.choice((*ORDINARY.get(key, ()), *FLAGS.get(key, ())))
            for key in random_.sample(keys, random_.randint(0, 3))
        }
        if random_.random() < 0.3:
            key = random_.choice(keys)
            options[key] = strange(random_, key)
        counters = {}
        if random_.random() < 0.1:
            counters["step"] = random_.choice(STEPS)
        if random_.random() < 0.05:
            counters["mu_product"] = random_.choice(PRODUCTS)
        done.append((options, counters))
    dtype = random_.choice((torch.float32, torch.float64))
    return dtype, random_.random() < 0.2, done


def group_of(name):
    return getattr(torch.optim, name)([torch.ones(1)]).param_groups[0]


def take_steps(module, name, seed):
    dtype, two_groups, done = plan(name, seed)
    torch.manual_seed(seed)
    params = [torch.nn.Parameter(torch.randn(s, dtype=dtype)) for s in ((3, 5), (7,), ())]
    groups = [{"params": params[:1]}, {"params": params[1:]}] if two_groups else params
    more = loop(name) if module is torch.optim else {}
    optimizer = getattr(module, name)(groups, **{**OPTIMIZERS[name], **more})
    for options, counters in done:
        for p in params:
            p.grad = torch.randn(p.shape, dtype=dtype)
        optimizer.param_groups[-1].update(options)
        for p in params[-1:] if two_groups else params:
            for key in counters.keys() & optimizer.state.get(p, {}).keys():
                optimizer.state[p][key].fill_(counters[key])
        optimizer.step()
    states = [optimizer.state.get(p, {}) for p in params]
    return [*params, *(t for s in states for _, t in sorted(s.items()))], dtype


def compare(name, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs = (
            outcome(lambda m=m: take_steps(m, name, seed)) for m in (optim, torch.optim)
        )
    said = f"compare({name!r}, {seed}): {plan(name, seed)}\nours {ours}\nPyTorch {theirs}"
    assert ours[0] == theirs[0], said
    if ours[0] == "raises":
        assert ours[1] is theirs[1], said
        return
    (mine, dtype), (others, _) = ours[1], theirs[1]
    # NumPy's float32 and a float32 tensor make torch compute step sizes in float32.
    narrow = any(isinstance(v, np.float32 | torch.Tensor) for o, _ in plan(name, seed)[2] for v in o.values())
    tolerance = 1e-5 if narrow or dtype == torch.float32 else 1e-12
    for p, q in zip(mine, others, strict=True):
        assert type(p) is type(q) and p.dtype == q.dtype, said
        assert relative_error(p.detach(), q.detach()) <= tolerance, said


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_options_at_random(name):
    for seed in range(60):
        compare(name, seed)
