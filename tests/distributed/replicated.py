"""Checks of DistributedDataParallel and ZeroRedundancyOptimizer: what each rank ends with.

Run by worker.py in every process of a group; judged by test_distributed.py.
"""

import contextlib

from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.join import Join
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from training import (
    LEARNING_RATE,
    LOSSES,
    OPTIMIZERS,
    batches,
    loss_of,
    moved,
    named,
    net,
    of_each_form,
    optim,
    optimizer_of,
    parameters,
    train,
)


def ddp(form, rank, world, name="Adam", loss="CrossEntropyLoss", clip=None, hook=None, **options):
    model = net(form)
    wrapped = DistributedDataParallel(model, **options)
    if hook is not None:
        wrapped.register_comm_hook(None, hook)
    optimizer = optimizer_of(form, model.parameters(), name)
    return train(wrapped, optimizer, form, rank, world, clip=clip, loss=loss)


def master_weights(form, rank, world):
    """Parameters and gradients of bfloat16, which DistributedDataParallel averages as such."""
    model = net(form).bfloat16()
    wrapped = DistributedDataParallel(model)
    optimizer = optimizer_of(form, model.parameters(), "SGD", momentum=0.9, master_weights=True)
    loss_fn = loss_of(form)
    for x, y in batches(rank, world, 4):
        optimizer.zero_grad()
        loss_fn(wrapped(x.bfloat16()), y).backward()
        optimizer.step()
    masters = [optimizer.state[p]["master"] for p in model.parameters()]
    return {"parameters": parameters(model), "masters": masters}


def unused_parameters(form, rank, world):
    """A branch that no batch takes: its gradient stays None, and so do its values."""
    model = net(form)
    model.unused = nn.Sequential(nn.Linear(6, 3))
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = optim(form).Adam(wrapped.parameters(), lr=LEARNING_RATE)
    return train(wrapped, optimizer, form, rank, world)[:-2]


def accumulated(form, rank, world, name="SGD", loss="CrossEntropyLoss"):
    """Two halves of each batch, the first under no_sync."""
    model = DistributedDataParallel(net(form))
    optimizer = optimizer_of(form, model.parameters(), name)
    loss_fn = loss_of(form, loss)
    for x, y in batches(rank, world, 4):
        optimizer.zero_grad()
        for half in (0, 1):
            with model.no_sync() if half == 0 else contextlib.nullcontext():
                (loss_fn(model(x[half::2]), y[half::2]) / 2).backward()
        optimizer.step()
    return parameters(model)


def zero(form, rank, world, name="AdamW", **options):
    """Each rank has the state of half of the parameters; rank 0 gathers it at the end."""
    model = DistributedDataParallel(net(form))
    kind = getattr(optim(form), name)
    options |= OPTIMIZERS[name] | {"optimizer_class": kind, "lr": LEARNING_RATE}
    optimizer = ZeroRedundancyOptimizer(model.parameters(), **options)
    assert type(optimizer.optim) is kind
    values = train(model, optimizer, form, rank, world)
    optimizer.consolidate_state_dict(to=0)
    return {"parameters": values, "state": optimizer.state_dict() if rank == 0 else None}


def uneven_inputs(form, rank, world):
    """Rank 1 has fewer batches; Join lets it shadow the gradients of the others."""
    model = DistributedDataParallel(net(form))
    optimizer = optimizer_of(form, model.parameters(), "SGD")
    loss_fn = loss_of(form)
    with Join([model]):
        for x, y in batches(rank, world, 4 if rank == 0 else 2):
            optimizer.zero_grad()
            loss_fn(model(x), y).backward()
            optimizer.step()
    return parameters(model)


def initial_values_are_broadcast(form, rank, world):
    return parameters(DistributedDataParallel(moved(net(form), rank)))


CHECKS = named(
    ddp=of_each_form(ddp),
    **{f"ddp_{name}": of_each_form(ddp, name=name) for name in OPTIMIZERS},
    **{f"ddp_{loss}": of_each_form(ddp, loss=loss) for loss in LOSSES},
    **{f"ddp_accumulated_{n}": of_each_form(accumulated, ["fused"], name=n) for n in OPTIMIZERS},
    **{f"ddp_accumulated_{n}": of_each_form(accumulated, ["fused"], loss=n) for n in LOSSES},
    **{f"zero_{name}": of_each_form(zero, name=name) for name in OPTIMIZERS},
    master_weights=of_each_form(master_weights),
    ddp_views_of_buckets=of_each_form(ddp, gradient_as_bucket_view=True, bucket_cap_mb=1e-4),
    ddp_static_graph=of_each_form(ddp, static_graph=True, name="SGD", clip=0.1),
    ddp_unused_parameters=of_each_form(unused_parameters),
    ddp_accumulated=of_each_form(accumulated),
    ddp_hook=of_each_form(ddp, hook=default_hooks.allreduce_hook),
    ddp_broadcast=of_each_form(initial_values_are_broadcast),
    ddp_uneven=of_each_form(uneven_inputs, forms=("fused", "own", "plain")),
    zero_views_of_buckets=of_each_form(zero, parameters_as_bucket_view=True),
)
