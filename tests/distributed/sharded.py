"""Checks of FSDP2 (fully_shard), tensor parallelism and distributed checkpoints.

Run by worker.py in every process of a group; judged by test_sharded.py.
"""

import contextlib

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from training import (
    LEARNING_RATE,
    LOSSES,
    OPTIMIZERS,
    batches,
    loss_of,
    named,
    net,
    of_each_form,
    optim,
    optimizer_of,
    parameters,
    train,
)

import mlp_ext
from mlp_ext._load import _C


def shard(form: str, where: str, mesh, **options) -> nn.Module:
    """The net with its root sharded; first each of its blocks, or each of its Linear."""
    model = net(form)
    for module in list(model.modules())[1:]:
        if where == "blocks" and module in set(model.children()):
            fully_shard(module, mesh=mesh, **options)
        elif where == "linears" and isinstance(module, nn.Linear | mlp_ext.nn.Linear):
            fully_shard(module, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    return model


def fsdp(form, rank, world, where, name="Adam", loss="CrossEntropyLoss", clip=None):
    calls = []
    stack = _C.mlp

    def counting(input, weights, biases, codes):
        calls.append(len(codes))
        return stack(input, weights, biases, codes)

    model = shard(form, where, init_device_mesh("cpu", (world,)))
    optimizer = optimizer_of(form, model.parameters(), name)
    _C.mlp = counting
    try:
        values = train(model, optimizer, form, rank, world, clip=clip, loss=loss)
    finally:
        _C.mlp = stack
    for state in optimizer.state[next(model.parameters())].values():
        assert isinstance(state, DTensor) or state.dim() == 0
    return {"parameters": values, "stacks": sorted(calls)}


def fsdp_master_weights(form, rank, world):
    model = shard("plain", "blocks", init_device_mesh("cpu", (world,))).bfloat16()
    optimizer = optimizer_of(form, model.parameters(), "AdamW", master_weights=True)
    loss_fn = loss_of(form)
    for x, y in batches(rank, world, 4):
        optimizer.zero_grad()
        loss_fn(model(x.bfloat16()), y).backward()
        optimizer.step()
    values, states = get_state_dict(model, optimizer)
    dcp.save({"model": values, "optimizer": states}, checkpoint_id="of-two-masters")
    masters = [optimizer.state[p]["master"].full_tensor() for p in model.parameters()]
    return {"parameters": parameters(model), "masters": masters}


def fsdp_accumulated(form, rank, world):
    model = shard(form, "blocks", init_device_mesh("cpu", (world,)))
    optimizer = optimizer_of(form, model.parameters(), "SGD")
    loss_fn = loss_of(form)
    for x, y in batches(rank, world, 4):
        optimizer.zero_grad()
        for half in (0, 1):
            model.set_requires_gradient_sync(half == 1)
            (loss_fn(model(x[half::2]), y[half::2]) / 2).backward()
        optimizer.step()
    return parameters(model)


def fsdp_mixed(form, rank, world):
    """Parameters gathered as bfloat16, gradients reduced as float32."""
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, output_dtype=torch.float32)
    model = shard(form, "blocks", init_device_mesh("cpu", (world,)), mp_policy=policy)
    optimizer = optimizer_of(form, model.parameters(), "SGD")
    return train(model, optimizer, form, rank, world)


def fuse_after_sharding(form, rank, world):
    """A Sequential that fully_shard has given another class stays as it is, and explain says so."""
    model = mlp_ext.fuse(shard("plain", "blocks", init_device_mesh("cpu", (world,))))
    assert isinstance(model.body, FSDPModule)
    how = {report.path: report.how for report in mlp_ext.explain(model)}["body.0"]
    optimizer = optim(form).Adam(model.parameters(), lr=LEARNING_RATE)
    return {"parameters": train(model, optimizer, form, rank, world), "how": how}


def tensor_parallel(form, rank, world):
    """Columns, then rows of each stack on the ranks; every rank sees the whole batch.

    In the form "own" body and middle are LinearActivation, which are no nn.Linear: refused.
    """
    model, mesh = net(form), init_device_mesh("cpu", (world,))
    plan = {"head.0": ColwiseParallel(), "head.2": RowwiseParallel()}
    body = {"body.0": ColwiseParallel(), "body.2": RowwiseParallel()}
    body |= {"middle": ColwiseParallel(output_layouts=Replicate())}
    if form == "own":
        for name in ("body.0", "middle"):
            with contextlib.suppress(NotImplementedError):
                parallelize_module(model, mesh, {name: body[name]})
                raise AssertionError(f"{name} is no nn.Linear")
    else:
        plan |= body
    parallelize_module(model, mesh, plan)
    sharded = [name for name, p in model.named_parameters() if isinstance(p, DTensor)]
    assert {name.split(".")[0] for name in sharded} == {name.split(".")[0] for name in plan}
    optimizer = optimizer_of(form, model.parameters(), "SGD")
    return train(model, optimizer, form)


def save(form, rank, world, name="Adam"):
    """Two steps sharded, a checkpoint, two more."""
    model = shard(form, "blocks", init_device_mesh("cpu", (world,)))
    optimizer = optimizer_of(form, model.parameters(), name)
    train(model, optimizer, form, rank, world, steps=2)
    values, states = get_state_dict(model, optimizer)
    dcp.save({"model": values, "optimizer": states}, checkpoint_id=f"of-two-{name}-{form}")
    return train(model, optimizer, form, rank, world, steps=2)


def load(form, rank, world, name="Adam"):
    """The checkpoint that one process wrote before, sharded anew; then two steps."""
    model = shard(form, "blocks", init_device_mesh("cpu", (world,)))
    optimizer = optimizer_of(form, model.parameters(), name)
    for group in optimizer.param_groups:
        group["lr"] = 77.0
    values, states = get_state_dict(model, optimizer)
    dcp.load({"model": values, "optimizer": states}, checkpoint_id=f"of-one-{name}-{form}")
    set_state_dict(model, optimizer, model_state_dict=values, optim_state_dict=states)
    return train(model, optimizer, form, rank, world, steps=2)


CHECKS = named(
    **{f"fsdp_{n}": of_each_form(fsdp, ["fused"], where="root", name=n) for n in OPTIMIZERS},
    **{f"fsdp_{n}": of_each_form(fsdp, ["fused"], where="root", loss=n) for n in LOSSES},
    **{f"save_{name}": of_each_form(save, ["fused"], name=name) for name in OPTIMIZERS},
    **{f"load_{name}": of_each_form(load, ["fused"], name=name) for name in OPTIMIZERS},
    fsdp_master_weights=of_each_form(fsdp_master_weights, ["fused"]),
    fsdp_root=of_each_form(fsdp, where="root"),
    fsdp_blocks=of_each_form(fsdp, where="blocks", clip=0.1),
    fsdp_linears=of_each_form(fsdp, where="linears"),
    fsdp_accumulated=of_each_form(fsdp_accumulated),
    fsdp_mixed=of_each_form(fsdp_mixed, forms=("fused", "own", "plain")),
    fuse_after_sharding=of_each_form(fuse_after_sharding, forms=("fused",)),
    tensor_parallel=of_each_form(tensor_parallel),
    save=of_each_form(save),
    load=of_each_form(load),
)
