"""Disturbances of what an optimizer keeps: groups, lists of parameters, states."""

import collections

import torch
from torch import nn

from .disturbance import reads_strides, table
from .tensors import states_of

DISTURBANCES, disturbance = table()


@disturbance()
def groups_a_tuple(world, r):
    world.optimizer.param_groups = tuple(world.optimizer.param_groups)


@disturbance()
def state_of_another_kind(world, r):
    kind = r.choice((dict, collections.UserDict, collections.OrderedDict))
    world.optimizer.state = kind(world.optimizer.state)


@disturbance()
def state_entry_deleted(world, r):
    states = [(p, world.optimizer.state.get(p)) for p in world.parameters()]
    states = [(p, s) for p, s in states if s]
    if not states:
        return
    p, state = r.choice(states)
    if r.random() < 0.5:
        del world.optimizer.state[p]
    else:
        del state[r.choice(list(state))]


@disturbance()
def state_entry_changed(world, r):
    if not (found := states_of(world)):
        return
    state, key = r.choice(found)
    hows = ("number", "double", "none", "shape", "strides")
    # torch's fused optimizers look at no shape either.
    how = r.choice(hows if reads_strides(world.plan) else hows[:3])
    if how == "shape" and world.plan.optimizer["name"] == "RAdam" and key == "exp_avg_sq":
        how = "strides"  # PyTorch reads it in the sixth step only, and raises then; ours at once
    value = state[key]
    if how == "number":
        state[key] = value.flatten()[0].item() if value.numel() else 0
    elif how == "double":
        state[key] = value.double()
    elif how == "strides":
        state[key] = torch.stack((value, value), -1)[..., 0]
    elif how == "none":
        state[key] = None
    else:
        state[key] = torch.stack((value, value))


@disturbance()
def stranger_in_optimizer(world, r):
    stranger = nn.Parameter(torch.ones(2, dtype=world.dtype))
    if r.random() < 0.3:
        stranger.grad = torch.ones(2, dtype=world.dtype)
    world.optimizer.add_param_group({"params": [stranger]})


@disturbance()
def parameter_left_out(world, r):
    groups = [g for g in world.optimizer.param_groups if isinstance(g["params"], list)]
    group = r.choice(groups)
    if len(group["params"]) > 1:
        del group["params"][r.randrange(len(group["params"]))]


@disturbance()
def parameter_twice(world, r):
    group = r.choice(world.optimizer.param_groups)
    group["params"].append(group["params"][0])
