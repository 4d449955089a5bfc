"""Checks of TrainStep over a process group: what each rank ends with.

Run by worker.py in every process of a group; judged by test_step_group.py.
"""

import copy
import functools
import signal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset
from training import OPTIMIZERS, batches, moved, net, optimizer_of, parameters

import mlp_ext
from mlp_ext import TrainStep

STEPS = 4


def make(rank, name="Adam", model=None, loss_fn=F.cross_entropy, group=None, own=True, **options):
    """A step over the group on the net, whose values differ at first in all processes but one."""
    model = moved(net("plain"), rank) if model is None else model
    chosen = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer_of("own" if own else "plain", chosen, name)
    group = dist.group.WORLD if group is None else group
    return TrainStep(model, loss_fn, optimizer, process_group=group, **options)


def trained(rank, world, *, dtype=torch.float32, **options):
    model = moved(net("plain"), rank).to(dtype)
    step = make(rank, model=model, **options)
    losses = [step(x.to(dtype), y).item() for x, y in batches(rank, world, STEPS)]
    return {"parameters": parameters(model), "losses": losses}


def frozen(rank, world):
    """A layer without a gradient, and parameters that the optimizer does not have."""
    model = net("plain")
    model.middle.requires_grad_(False)
    optimizer = optimizer_of("own", model.body.parameters(), "SGD")
    step = TrainStep(
        model, F.cross_entropy, optimizer, clip_grad_norm=0.1, process_group=dist.group.WORLD
    )
    for x, y in batches(rank, world, STEPS):
        step(x, y)
    return parameters(model)


def kept_gradients(rank, world):
    step = make(rank, clip_grad_norm=0.1)
    for x, y in batches(rank, world, STEPS):
        step(x, y, keep_grad=True)
    return [p.grad.clone() for p in step.model.parameters()]


def epoch(rank, world, gathers):
    """The four batches as a data set of this rank's rows."""
    step = make(rank)
    x, y = (torch.cat(parts) for parts in zip(*batches(rank, world, STEPS), strict=True))
    kind = mlp_ext.data.DataLoader if gathers else torch.utils.data.DataLoader
    loader = kind(TensorDataset(x, y), batch_size=len(x) // STEPS)
    mean, losses = step.epoch(loader, batch_losses=True)
    return {"parameters": parameters(step.model), "mean": mean, "losses": losses.tolist()}


class Normalized(nn.Sequential):
    def __init__(self):
        torch.manual_seed(0)
        body = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.LayerNorm(8)
        super().__init__(*body, nn.Tanh(), nn.Linear(8, 3))


def ragged(rank):
    """Batches of 4, 4 and 2 rows in one process, 4, 4 and 3 in the other."""
    whole = torch.cat([x for x, _ in batches(0, 1, 2)])
    rows = slice(0, 10) if rank == 0 else slice(10, 21)
    return TensorDataset(whole[rows], torch.arange(len(whole))[rows] % 3)


def as_in_ddp(rank, world, broadcast_buffers, loss="mean", clip=None):
    """Ours and DistributedDataParallel over plain PyTorch: [parameters, buffers] of each.

    DistributedDataParallel copies no buffers at the start either if it does not broadcast them.
    """
    loss_fn = functools.partial(F.cross_entropy, reduction=loss)
    step = make(rank, "SGD", moved(Normalized(), rank), loss_fn, clip_grad_norm=clip)
    plain = moved(Normalized(), rank if broadcast_buffers else 0)
    wrapped = DistributedDataParallel(plain, broadcast_buffers=broadcast_buffers)
    optimizer = optimizer_of("plain", plain.parameters(), "SGD")
    for _ in range(2):
        step.epoch(mlp_ext.data.DataLoader(ragged(rank), batch_size=4))
        for x, y in torch.utils.data.DataLoader(ragged(rank), batch_size=4):
            optimizer.zero_grad()
            loss_fn(wrapped(x), y).backward()
            if clip:
                nn.utils.clip_grad_norm_(plain.parameters(), clip)
            optimizer.step()
    return [[parameters(m), [b.clone() for b in m.buffers()]] for m in (step.model, plain)]


def dropout(rank, world):
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Dropout(0.5), nn.Linear(40, 3))
    step = make(rank, model=model)
    x, y = next(batches(0, 1, 1))
    losses = [step(x, y).item() for _ in range(STEPS)]
    return {"parameters": parameters(model), "losses": losses}


def group_of_one(rank, world):
    own = [dist.new_group([member]) for member in range(world)]
    model = moved(net("plain"), rank)
    step = make(rank, model=model, group=own[rank])
    for x, y in batches(0, 1, STEPS):
        step(x, y)
    assert step.process_group is own[rank]
    return parameters(model)


def error_of(call):
    try:
        call()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def after_a_failure(rank, world, fails):
    """One step that all take, `fails(step, rank)`, which they do not, and one that all take."""
    step = make(rank, "SGD", own=False)
    first, second = batches(rank, world, 2)
    step(*first)
    before = copy.deepcopy([parameters(step.model), step.optimizer.state_dict()])
    error = error_of(lambda: fails(step, rank, *second))
    after = [parameters(step.model), step.optimizer.state_dict()]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    step(*second)
    return {"error": error, "parameters": parameters(step.model)}


def wrong_class(step, rank, x, y):
    step(x, y + 7 if rank == 1 else y)


def wrong_width(step, rank, x, y):
    step(x[:, 1:] if rank == 0 else x, y)


def other_parameters(step, rank, x, y):
    weight = step.model.middle.weight
    weight.requires_grad_(rank == 0)
    try:
        step(x, y)
    finally:
        weight.requires_grad_(True)


def loader_fails(step, rank, x, y):
    def loader():
        if rank == 1:
            raise OSError("no such file")
        yield x, y

    step.epoch(loader())


def epoch_of(step, rank, dataset, **options):
    """An error, and the parameters that all have then."""
    error = error_of(lambda: step.epoch(dataset, **options))
    return {"error": error, "parameters": parameters(step.model)}


def uneven_epoch(rank, world, gathers):
    """Two batches in one process, three in the other: two steps are taken."""
    data = list(batches(rank, world, STEPS))[: 2 + rank]
    if gathers:
        x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
        data = mlp_ext.data.DataLoader(TensorDataset(x, y), batch_size=len(x) // len(data))
    return epoch_of(make(rank), rank, data)


def wrong_class_in_an_epoch(rank, world):
    x, y = (torch.cat(parts) for parts in zip(*batches(rank, world, STEPS), strict=True))
    if rank == 1:
        y[2 * len(y) // STEPS] = 5  # in the third batch
    loader = mlp_ext.data.DataLoader(TensorDataset(x, y), batch_size=len(x) // STEPS)
    return epoch_of(make(rank), rank, loader)


def interrupted(rank, world):
    """A signal in the midst of an endless epoch of one process."""

    def handler(*_):
        raise KeyboardInterrupt

    step = make(rank)
    x, y = next(batches(rank, world, 1))
    dataset = TensorDataset(x.repeat(20_000, 1), y.repeat(20_000))
    before = signal.signal(signal.SIGALRM, handler)
    if rank == 1:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        return epoch_of(step, rank, mlp_ext.data.DataLoader(dataset, batch_size=8))
    finally:
        signal.signal(signal.SIGALRM, before)


def refusals(rank, world):
    wider = nn.Sequential(nn.Linear(6, 8 + rank), nn.ReLU(), nn.Linear(8 + rank, 3))
    shallow = nn.Sequential(nn.Linear(6, 3), *[nn.Linear(3, 3)] * rank)
    conv = nn.Sequential(nn.Linear(6, 3), nn.Conv1d(1, 1, 1) if rank else nn.ReLU())
    others = dist.new_group([0])
    calls = {
        "shapes": lambda: make(rank, model=wider),
        "depths": lambda: make(rank, model=shallow),
        "one model": lambda: make(rank, model=conv),
        "ddp": lambda: make(rank, model=DistributedDataParallel(net("plain"))),
        "a norm": lambda: make(rank, clip_grad_norm=-1 if rank else None),
        "a name": lambda: make(rank, group="gloo"),
        "copy": lambda: copy.deepcopy(make(rank)),
        "no member": lambda: make(rank, group=others) if rank else None,
    }
    return {name: error_of(call) for name, call in calls.items()}


CHECKS = {
    "adam": trained,
    **{name: functools.partial(trained, name=name) for name in OPTIMIZERS},
    "of_torch": functools.partial(trained, name="AdamW", own=False),
    "clipped": functools.partial(trained, name="SGD", clip_grad_norm=0.1),
    "float64": functools.partial(trained, dtype=torch.float64),
    "bfloat16": functools.partial(trained, name="SGD", compute_dtype=torch.bfloat16),
    "frozen": frozen,
    "kept_gradients": kept_gradients,
    "epoch_gathered": functools.partial(epoch, gathers=True),
    "epoch_of_a_loop": functools.partial(epoch, gathers=False),
    "as_in_ddp": functools.partial(as_in_ddp, broadcast_buffers=False),
    "as_in_ddp_sum": functools.partial(as_in_ddp, broadcast_buffers=False, loss="sum", clip=0.5),
    "as_in_ddp_broadcast": functools.partial(as_in_ddp, broadcast_buffers=True),
    "dropout": dropout,
    "group_of_one": group_of_one,
    "wrong_class": functools.partial(after_a_failure, fails=wrong_class),
    "wrong_width": functools.partial(after_a_failure, fails=wrong_width),
    "other_parameters": functools.partial(after_a_failure, fails=other_parameters),
    "loader_fails": functools.partial(after_a_failure, fails=loader_fails),
    "uneven_gathered": functools.partial(uneven_epoch, gathers=True),
    "uneven_loop": functools.partial(uneven_epoch, gathers=False),
    "wrong_class_in_an_epoch": wrong_class_in_an_epoch,
    "interrupted": interrupted,
    "refusals": refusals,
}
