"""Disturbances of memory: freed, and grown again at another place, as offloading code does."""

import torch
from torch import nn

from .disturbance import both, in_loop, table
from .tensors import a_parameter, states_of

DISTURBANCES, disturbance = table()


def free(tensor, size=0):
    tensor.untyped_storage().resize_(size)


def grow_again(tensor):
    """Other memory with the same values, as after an offload."""
    kept = tensor.detach().clone()
    size = tensor.untyped_storage().nbytes()
    free(tensor)
    free(tensor, size)
    with torch.no_grad():
        tensor.detach().copy_(kept)


def _read_as_it_is(plan):
    """PyTorch copies other inputs first, and copying freed memory is a crash, as is adding a freed
    bias by itself, for an input of three dimensions. Its normalizations and Flatten copy what is
    transposed."""
    layouts, model = ("plain", "offset"), plan.model
    if model["body"][0][0] != "norm" and not plan.batch["middle"] and not model["flatten"]:
        layouts += ("transposed",)
    return plan.batch["layout"] in layouts and plan.batch["rows"] > 0


@disturbance(_read_as_it_is, alone=True)
def freed_input(world, r):
    world.on_batch.append(lambda x, y: free(x))


def refuse():
    raise RuntimeError("freed")


def freed(world, where, tensor):
    """PyTorch's losses and optimizers crash where the layers raise (2.13), so that an error of that
    type is asked of ours and not of theirs. Without a TrainStep what is read is PyTorch's again."""
    if world.ours and (world.plan.entry == "loop" or world.step is not None):
        free(tensor)
    elif tensor.numel():
        where.append(lambda *_: refuse())


def _own_loss(plan):
    """The loss of ours gets to read the target."""
    usual = plan.loss["target"] in ("same", "spread", "int64") and not plan.batch["middle"]
    return usual and plan.batch["rows"] > 0 and (plan.own_loss or plan.entry != "loop")


def _own_optimizer(plan):
    own = plan.own_optimizer and (plan.own_loss or plan.clip is None)
    simple = plan.optimizer["lr_kind"] == "float" and not plan.optimizer["subclass"]
    return simple and plan.batch["rows"] > 0 and (own or plan.entry != "loop")


@disturbance(_own_loss, alone=True)
def freed_target(world, r):
    def act(x, y):
        where = []
        freed(world, where, y)
        for function in where:
            function()

    world.on_batch.append(act)


@disturbance()
def grown_input(world, r):
    world.on_batch.append(lambda x, y: x.requires_grad or grow_again(x))


@disturbance(_read_as_it_is, alone=True)
def freed_parameter(world, r):
    linear = r.choice(world.linears())
    free(r.choice([linear.weight, linear.weight if linear.bias is None else linear.bias]))


@disturbance()
def grown_parameter(world, r):
    grow_again(a_parameter(world, r))


@disturbance(_read_as_it_is, alone=True)
def freed_buffer(world, r):
    buffers = [b for b in world.model.buffers() if b.is_floating_point()]
    if buffers:
        free(r.choice(buffers))


@disturbance(both(in_loop, _own_optimizer), alone=True)
def freed_gradient(world, r):
    p = a_parameter(world, r)

    def act():
        if p.grad is not None:
            free(p.grad) if world.ours else refuse()

    world.mid.append(act)


@disturbance(_own_optimizer, alone=True)
def freed_state(world, r):
    if found := states_of(world):
        state, key = r.choice(found)
        trained = [world.optimizer.state.get(p) for p in world.parameters() if p.requires_grad]
        if any(state is each for each in trained):  # nobody reads the others
            freed(world, world.before_update, state[key])


@disturbance()
def grown_state(world, r):
    if found := states_of(world):
        state, key = r.choice(found)
        grow_again(state[key])


@disturbance(both(_own_loss, lambda plan: "weight" in plan.loss["options"]), alone=True)
def freed_loss_weight(world, r):
    loss = world.loss_fn
    weight = loss.weight if isinstance(loss, nn.Module) else loss.keywords["weight"]
    # There is no place before a batch of an epoch.
    freed(world, world.mid if world.plan.entry == "epoch" else world.on_batch, weight)
