"""One case from its seed to its failure, if any, and that reduced to what it needs."""

import dataclasses

import torch

import mlp_ext

from .compare import difference, failure_of
from .plan import draw
from .world import World


def check(seed, progress=lambda side: None):
    """(plan, None or a Failure, TrainStep's refusals); progress is told whose run begins. Of a case
    that fails, plan and Failure are those of the least operations that fail in this way."""
    plan = draw(seed)
    failure, refusals = run_both(plan, progress)
    if failure:
        plan, failure = reduced(plan, failure, progress)
    return plan, failure, refusals


def run_both(plan, progress=lambda side: None):
    progress("PyTorch")
    theirs = World(plan, False).run()
    progress("mlp_ext")
    ours = World(plan, True, theirs.log).run()
    failure = difference(plan, theirs, ours)
    is_cyclic = failure is None and ours.cyclic and theirs.cyclic
    if is_cyclic and theirs.is_gone() and not ours.is_gone():
        failure = failure_of(plan, "cycle", len(plan.operations), "never freed", "")
    return failure, ours.refusals


def reduced(plan, failure, progress):
    """Without each operation, and each unusual choice, that it does not need."""
    i = 0
    while i < len(plan.operations):
        operations = plan.operations[:i] + plan.operations[i + 1 :]
        plan, failure, fits = _simpler(plan, failure, progress, operations=operations)
        i += not fits
    kind = plan.model["kind"]
    changes = [
        {"clip": None},
        {"dtype": torch.float32},
        {"isa": mlp_ext.cpu.supported_isas()[-1]},
        {"batch": {**plan.batch, "layout": "plain", "middle": ()}},
        {"model": {**plan.model, "kind": "sequential" if kind == "nested" else kind}},
    ]
    usual = {"subclass": None, "scheduler": None, "lr_kind": "float", "groups": 1}
    for change in changes:
        plan, failure, _ = _simpler(plan, failure, progress, **change)
    for name, value in usual.items():
        optimizer = {**plan.optimizer, name: value}
        plan, failure, _ = _simpler(plan, failure, progress, optimizer=optimizer)
    return plan, failure


def _simpler(plan, failure, progress, **changes):
    other = dataclasses.replace(plan, **changes)
    found, _ = run_both(other, progress)
    if found and found.kind.partition("|")[2] == failure.kind.partition("|")[2]:
        return other, found, True
    return plan, failure, False
