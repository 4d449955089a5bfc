"""Checks of TrainStep over a process group by its way on CUDA, beside DistributedDataParallel.

Run by worker.py in every process of a group; judged by test_graphed_group.py, on the CPU, and by
tests/cuda/test_step_group_cuda.py. MLP_EXT_TEST_DEVICE names the device: with several GPUs each
process has its own, and the current one is the first in all of them.
"""

import copy
import functools
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset
from training import moved, net, optimizer_of, parameters

import mlp_ext
from mlp_ext import TrainStep

sys.path.append(str(Path(__file__).resolve().parents[1] / "cuda"))
from graphed_on_cpu import take_that_way  # noqa: E402

STEPS = 4


def device_of(rank):
    if os.environ["MLP_EXT_TEST_DEVICE"] == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", rank % torch.cuda.device_count())


def batches(rank, rows=(8,) * STEPS, dtype=torch.float64):
    """Others in each process."""
    generator = torch.Generator().manual_seed(rank)
    for n in rows:
        x = torch.randn(n, 6, generator=generator, dtype=dtype)
        y = torch.randint(3, (n,), generator=generator)
        yield x.to(device_of(rank)), y.to(device_of(rank))


def make(rank, model=None, name="SGD", own=True, params=None, loss_fn=F.cross_entropy, **options):
    """A step on a model whose values differ at first in all processes but one."""
    model = moved(net("plain") if model is None else model, rank).double().to(device_of(rank))
    params = [p for p in model.parameters() if p.requires_grad] if params is None else params(model)
    optimizer = optimizer_of("own" if own else "plain", params, name)
    return TrainStep(model, loss_fn, optimizer, process_group=dist.group.WORLD, **options)


class Ddp:
    """The loop that a step of make's stands for, in PyTorch."""

    def __init__(self, rank, model=None, name="SGD", params=None, clip_grad_norm=None, **_):
        self.model = (net("plain") if model is None else model).double().to(device_of(rank))
        self.wrapped = DistributedDataParallel(self.model, broadcast_buffers=False)
        params = params(self.model) if params else self.model.parameters()
        chosen = [p for p in params if p.requires_grad]
        self.optimizer, self.clip = optimizer_of("plain", chosen, name), clip_grad_norm

    def __call__(self, x, y, keep_grad=False):
        self.optimizer.zero_grad()
        self.model.zero_grad()
        loss = F.cross_entropy(self.wrapped(x), y)
        loss.backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return loss.detach()


def state_of(model, losses):
    """All that is compared."""
    grads = [torch.zeros(()) if p.grad is None else p.grad for p in model.parameters()]
    buffers = list(model.buffers())
    return {
        "parameters": [p.cpu() for p in parameters(model)],
        "grads": [g.detach().cpu() for g in grads],
        "buffers": [b.detach().cpu() for b in buffers],
        "losses": [loss.item() for loss in losses],
    }


def beside_ddp(rank, world, rows=None, build=None, keep_grad=False, change=None, **options):
    """[ours, DistributedDataParallel's] after a step on each batch; change(model) in the middle."""
    found = []
    for kind in (make, Ddp):
        step = kind(rank, build and build(), **options)
        losses = []
        for i, (x, y) in enumerate(batches(rank, *([rows[rank]] if rows else []))):
            if change is not None and i == 2:
                change(step.model)
            losses.append(step(x, y, keep_grad=keep_grad))
        if not keep_grad:
            assert kind is Ddp or all(p.grad is None for p in step.model.parameters())
            step.model.zero_grad()
        found.append(state_of(step.model, losses))
    return found


def frozen():
    model = net("plain")
    model.middle.requires_grad_(False)
    return model


def normalized():
    torch.manual_seed(0)
    body = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5), nn.LayerNorm(5)
    return nn.Sequential(*body, nn.Tanh(), nn.Linear(5, 3))


def replace_child(model):
    model[5] = nn.SiLU()


def epoch(rank, world, loader):
    ours, theirs = make(rank), Ddp(rank)
    x, y = (torch.cat(parts).cpu() for parts in zip(*batches(rank), strict=True))
    _, losses = ours.epoch(loader(TensorDataset(x, y)), batch_losses=True)
    expected = [theirs(*batch) for batch in batches(rank)]
    theirs.model.zero_grad()
    return [state_of(ours.model, losses), state_of(theirs.model, expected)]


def error_of(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


class UnevenLoader:
    def __init__(self, rank, length):
        self.rank, self.length = rank, length

    def __iter__(self):
        return batches(self.rank)

    def __len__(self):
        return self.length()


def epochs_refused(rank, world):
    """Nobody has taken a step then, and all can go on."""
    ours, theirs = make(rank), Ddp(rank)

    def missing():
        if rank == 1:
            raise OSError("no such file")
        return STEPS

    lengths = {"uneven": lambda: 3 + rank, "missing": missing}
    calls = {k: functools.partial(ours.epoch, UnevenLoader(rank, v)) for k, v in lengths.items()}
    errors = {name: error_of(call) for name, call in calls.items()}
    losses = [ours(*batch) for batch in batches(rank)]
    expected = [theirs(*batch) for batch in batches(rank)]
    theirs.model.zero_grad()
    found = [state_of(ours.model, losses), state_of(theirs.model, expected)]
    return {"errors": errors, "states": found}


def bad_calls(rank, world):
    """The errors of both processes, and how many all-reduces they have begun."""
    step = make(rank, clip_grad_norm=0.1)
    x, y = next(batches(rank))
    step(x, y, keep_grad=True)
    before, weight = copy.deepcopy(state_of(step.model, [])), step.model.middle.weight
    begun = []
    all_reduce = dist.all_reduce

    def hooked():
        handle = step.model.middle.register_forward_hook(lambda *_: None)
        try:
            step(x, y)
        finally:
            handle.remove()

    def refrozen():
        weight.requires_grad_(False)
        try:
            step(x, y)
        finally:
            weight.requires_grad_(True)

    calls = {
        "too narrow": lambda: step(x[:, :4], y),
        "elsewhere": lambda: step(x.to("meta"), y),
        "with a gradient": lambda: step(x.clone().requires_grad_(), y),
        "no rows": lambda: step(x[:0], y[:0]),
        "other dtype": lambda: step(x.float(), y),
        "too few targets": lambda: step(x, y[:3]),
        "hooked": hooked,
        "frozen": refrozen,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", lambda *a, **k: begun.append(1) or all_reduce(*a, **k))
        errors = {name: error_of(call) for name, call in calls.items()}
        torch.testing.assert_close(state_of(step.model, []), before, rtol=0, atol=0)
        failed_with = len(begun)
        step(x, y)
    counts = [failed_with, len(begun)]
    # What was kept is no view of the buffer that all steps share.
    torch.testing.assert_close(state_of(step.model, [])["grads"], before["grads"], rtol=0, atol=0)
    return {"errors": errors, "all_reduces": counts, "states": [state_of(step.model, [])]}


def refusals(rank, world):
    """Errors at construction of one process or of both; a group's all-reduce still works then."""
    wider = nn.Sequential(nn.Linear(6, 8 + rank), nn.ReLU(), nn.Linear(8 + rank, 3))
    conv = nn.Sequential(nn.Linear(6, 3), nn.Conv1d(1, 1, 1) if rank else nn.ReLU())
    calls = {
        "shapes": lambda: make(rank, wider),
        "one model": lambda: make(rank, conv),
        "a norm": lambda: make(rank, clip_grad_norm=-1 if rank else None),
        "frozen here": lambda: make(rank, frozen() if rank else None),
    }
    errors = {name: error_of(call) for name, call in calls.items()}
    step = make(rank)
    step(*next(batches(rank)))
    return {"errors": errors, "states": [state_of(step.model, [])]}


def without_waiting(rank, world):
    """Under NCCL an error where the host waits for the GPU."""
    step = make(rank, name="Adam", clip_grad_norm=0.1)
    x, y = next(batches(rank))
    step(x, y)
    nccl = dist.get_backend() == "nccl"
    if nccl:
        torch.cuda.set_sync_debug_mode("error")
    try:
        losses = [step(x, y, keep_grad=i == 2) for i in range(STEPS)]
    finally:
        if nccl:
            torch.cuda.set_sync_debug_mode("default")
    return state_of(step.model, losses)


def of_that_way(check):
    """On the CPU too."""

    @functools.wraps(check)
    def run(rank, world):
        with pytest.MonkeyPatch.context() as patch:
            if device_of(rank).type == "cpu":
                take_that_way(patch)
            return check(rank, world)

    return run


RAGGED = ((8, 8, 5, 8, 5), (8, 3, 8, 8, 3))  # of each rank: the shapes change at other steps
TRAINED = {
    "sgd": functools.partial(beside_ddp),
    "adam": functools.partial(beside_ddp, name="Adam"),
    "of_torch": functools.partial(beside_ddp, name="AdamW", own=False),
    "clipped": functools.partial(beside_ddp, clip_grad_norm=0.1),
    "kept": functools.partial(beside_ddp, keep_grad=True),
    "kept_clipped": functools.partial(beside_ddp, keep_grad=True, clip_grad_norm=0.1),
    "frozen": functools.partial(beside_ddp, build=frozen, keep_grad=True, clip_grad_norm=0.1),
    "of_no_optimizer": functools.partial(
        beside_ddp, params=lambda model: model.body.parameters(), clip_grad_norm=0.1
    ),
    "ragged": functools.partial(beside_ddp, rows=RAGGED, clip_grad_norm=0.1),
    "ragged_adam": functools.partial(beside_ddp, rows=RAGGED, name="Adam"),
    "normalized": functools.partial(beside_ddp, build=normalized, rows=RAGGED),
    "changed": functools.partial(beside_ddp, build=normalized, change=replace_child),
    "epoch": functools.partial(epoch, loader=lambda d: torch.utils.data.DataLoader(d, 8)),
    "epoch_own": functools.partial(epoch, loader=lambda d: mlp_ext.data.DataLoader(d, 8)),
    "epoch_unknown_length": functools.partial(
        epoch, loader=lambda d: (batch for batch in torch.utils.data.DataLoader(d, 8))
    ),
}
OTHERS = {
    "epochs_refused": epochs_refused,
    "bad_calls": bad_calls,
    "refusals": refusals,
    "without_waiting": without_waiting,
}
CHECKS = {name: of_that_way(check) for name, check in (TRAINED | OTHERS).items()}
