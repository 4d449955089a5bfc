"""Optimizers of a case, PyTorch's or ours: classes, options, subclasses, schedulers, changes."""

import numpy as np
import torch

from mlp_ext import optim

CLASSES = ("SGD", "SGD", "Adam", "Adam", "AdamW", "Adagrad", "RMSprop", "NAdam", "RAdam", "Adamax")
_OPTIONS = {
    "SGD": {
        "momentum": (0.0, 0.9),
        "dampening": (0.0, 0.1),
        "nesterov": (True,),
    },
    "Adam": {"amsgrad": (True,), "betas": ((0.5, 0.9), (0.0, 0.0))},
    "AdamW": {"amsgrad": (True,), "betas": ((0.8, 0.99),)},
    "Adagrad": {"lr_decay": (0.05,), "initial_accumulator_value": (0.5,)},
    "RMSprop": {"alpha": (0.9,), "momentum": (0.9,), "centered": (True,)},
    "NAdam": {"momentum_decay": (0.05,), "decoupled_weight_decay": (True,)},
    "RAdam": {"betas": ((0.8, 0.9),), "decoupled_weight_decay": (True,)},
    "Adamax": {"betas": ((0.5, 0.9),)},
}
SUBCLASSES = ("counter", "init_group", "add_group", "late", "own_step", "nothing")


def draw_optimizer(r):
    name = r.choice(CLASSES)
    options = {"lr": r.choice((0.01, 0.05, 0.001, 0.1 if name in ("SGD", "Adagrad") else 0.02))}
    if name not in ("SGD",):
        options["eps"] = 1e-3
    for option, values in _OPTIONS[name].items():
        if r.random() < 0.3:
            options[option] = r.choice(values)
    if r.random() < 0.2:
        options["weight_decay"] = r.choice((0.01, 0.1))
    if r.random() < 0.1:
        options["maximize"] = True
    if r.random() < 0.15:
        flags = [("foreach", True), ("foreach", False)]
        if name in ("SGD", "Adam", "AdamW", "Adagrad"):
            flags.append(("fused", True))
        options.update([r.choice(flags)])
    if options.get("nesterov") and options.get("foreach"):
        options["foreach"] = False  # torch's leaves its steps in .grad, by mistake
    kinds = ("float",) * 14 + ("float32", "float64", "tensor", "negative")
    kind = r.choice(kinds + ("int",) * (name in ("SGD", "Adagrad")))
    return {
        "name": name,
        "options": options,
        "lr_kind": kind,
        "groups": r.choice((1, 1, 1, 2, 3)),
        "subclass": r.choice(SUBCLASSES) if r.random() < 0.08 else None,
        "scheduler": r.choice(("step", "lambda", "cosine", "one_cycle"))
        if r.random() < 0.15
        else None,
    }


def number(value, kind, is_fused):
    """A learning rate as the type that a user's program may have it in. With an int torch's fused
    SGD does nothing (2.13)."""
    if kind in ("float32", "float64"):
        return getattr(np, kind)(value)
    if kind == "tensor":
        return torch.tensor(value)
    return {"int": 1.0 if is_fused else 1, "negative": -value}.get(kind, value)


def build_optimizer(spec, params, own):
    params = list(params)
    options = dict(spec["options"])
    options["lr"] = number(options["lr"], spec["lr_kind"], options.get("fused"))
    cls = getattr(optim if own else torch.optim, spec["name"])
    if spec["subclass"]:
        cls = subclass_of(cls, spec["subclass"])
    n = min(spec["groups"], len(params))
    if n <= 1:
        return cls(params, **options)
    groups = [{"params": params[i::n]} for i in range(n)]
    groups[-1]["lr"] = options["lr"] / 2
    return cls(groups, **options)


def subclass_of(base, kind):
    """What users' subclasses do: attributes of any name, overrides of every method."""

    class Counter(base):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self._step, self._compiled_step, self._fused = 0, 1, True

        def step(self, closure=None):
            self._step += 1
            for group in self.param_groups:
                group["lr"] = group["lr"] * 0.9
            return super().step(closure)

    class InitGroup(base):
        def _init_group(self, group, params, grads, *lists):
            result = super()._init_group(group, params, grads, *lists)
            grads[:] = [g - g.mean() for g in grads]
            return result

    class AddGroup(base):
        def add_param_group(self, group):
            group.setdefault("note", "mine")
            super().add_param_group(group)

    class Late(base):
        def __init__(self, *args, **kwargs):
            self.early = 1
            super().__init__(*args, **kwargs)

        def __getstate__(self):
            return super().__getstate__()

        def __setstate__(self, state):
            super().__setstate__(state)
            self.early = 2

    class OwnStep(base):
        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad.mul_(0.5)
            return super().step(closure)

    class Nothing(base):
        pass

    kinds = (Counter, InitGroup, AddGroup, Late, OwnStep, Nothing)
    return dict(zip(SUBCLASSES, kinds, strict=True))[kind]


def build_scheduler(kind, optimizer):
    schedulers = torch.optim.lr_scheduler
    if kind == "step":
        return schedulers.StepLR(optimizer, 2, 0.5)
    if kind == "lambda":
        return schedulers.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    if kind == "cosine":
        return schedulers.CosineAnnealingLR(optimizer, 5)
    return schedulers.OneCycleLR(optimizer, 0.1, total_steps=40, cycle_momentum=False)


def change_options(r, world):
    """Another value of one option of one group: usual ones, unusual types, values out of range."""
    group = r.choice(world.optimizer.param_groups)
    odd = {
        "lr": (
            0.0,
            0.03,
            1,
            np.float32(0.02),
            np.float64(0.02),
            torch.tensor(0.02),
            -0.01,
            "float",
        ),
        "weight_decay": (0.0, 0.05, np.float32(0.05), -0.1, 1),
        "momentum": (0.0, 0.5, 1.5, np.float32(0.5)),
        "betas": (
            (0.5, 0.5),
            [0.5, 0.5],
            (np.float32(0.5), 0.9),
            (1.0, 0.9),
            (0.9, 1.0),
            (0.9, 1.1),
        ),
        "eps": (1e-2, 0.0, np.float32(1e-2), -1e-3),
        "maximize": (True, False, 1, 0),
        "amsgrad": (True, False, 1),
        "nesterov": (True, False),
        "dampening": (0.0, 0.2),
        "alpha": (0.5, 1.0, 1.2),
        "centered": (True, False),
        "foreach": (True, False, None),
        "lr_decay": (0.1, -0.1),
        "momentum_decay": (0.1,),
        "decoupled_weight_decay": (True, False),
    }
    if ("norm", "layer", 1) in world.plan.model["body"]:  # 0 or noise, over a correction of 0
        odd["betas"] = odd["betas"][:3]
    name = r.choice([name for name in odd if name in group])
    value = r.choice(odd[name])
    if group.get("fused") and type(value) is int:  # torch's fused ones take no int, or ignore it
        value = type(group[name])(value) if isinstance(group[name], bool) else float(value)
    if value == "float":  # by hand, as warm-up code does
        value = float(group["lr"]) * 2
    group[name] = value
    if group.get("nesterov") and group.get("foreach"):
        group["foreach"] = False  # as above
    return f"{name}={value!r}"
