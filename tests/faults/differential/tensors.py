"""Disturbances of memory, tensors and the optimizer. Each is made of what a program may do to its
own objects; PyTorch says what comes of it."""

import collections

import torch
from torch import nn

from .disturbance import both, in_loop, table

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


def _a_parameter(world, r):
    return r.choice(world.parameters())


def _states(world):
    states = [s for s in map(world.optimizer.state.get, world.parameters()) if s]
    return [(s, k) for s in states for k, v in s.items() if isinstance(v, torch.Tensor)]


def _read_as_it_is(plan):
    """PyTorch copies other inputs first, and copying freed memory is a crash."""
    return plan.batch["layout"] in ("plain", "offset", "transposed") and plan.batch["rows"] > 0


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
    grow_again(_a_parameter(world, r))


@disturbance(_read_as_it_is, alone=True)
def freed_buffer(world, r):
    buffers = [b for b in world.model.buffers() if b.is_floating_point()]
    if buffers:
        free(r.choice(buffers))


@disturbance(both(in_loop, _own_optimizer), alone=True)
def freed_gradient(world, r):
    p = _a_parameter(world, r)

    def act():
        if p.grad is not None:
            free(p.grad) if world.ours else refuse()

    world.mid.append(act)


@disturbance(_own_optimizer, alone=True)
def freed_state(world, r):
    if found := _states(world):
        state, key = r.choice(found)
        freed(world, world.mid, state[key])


@disturbance()
def grown_state(world, r):
    if found := _states(world):
        state, key = r.choice(found)
        grow_again(state[key])


@disturbance(both(_own_loss, lambda plan: "weight" in plan.loss["options"]), alone=True)
def freed_loss_weight(world, r):
    loss = world.loss_fn
    weight = loss.weight if isinstance(loss, nn.Module) else loss.keywords["weight"]
    freed(world, world.on_batch, weight)


@disturbance()
def data_replaced(world, r):
    p, how = _a_parameter(world, r), r.choice(("same", "strides", "double", "shape", "view"))
    with torch.no_grad():
        new = p.detach() * 0.5
        if how == "strides":
            new = torch.stack((new, new), -1)[..., 0]
        elif how == "double":
            new = new.double()
        elif how == "shape":
            new = torch.cat((new, new))
        elif how == "view":
            new = torch.cat((new.flatten(), new.flatten()))[: p.numel()].view(p.shape)
        p.data = new


@disturbance()
def data_set(world, r):
    p = _a_parameter(world, r)
    with torch.no_grad():
        p.set_(p.detach() * 0.5)


@disturbance()
def swapped(world, r):
    p = _a_parameter(world, r)
    torch.utils.swap_tensors(p, nn.Parameter(p.detach() * 0.5, p.requires_grad))


@disturbance()
def swap_on_conversion(world, r):
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    world.at_end(lambda: torch.__future__.set_swap_module_params_on_conversion(before))
    how = r.choice(("double", "load", "float"))
    if how == "load":
        world.model.load_state_dict({k: v * 0.5 for k, v in world.model.state_dict().items()})
    else:
        world.convert(getattr(torch, how))


@disturbance()
def converted(world, r):
    world.convert(r.choice((torch.float64, torch.float32, torch.bfloat16)), r.random() < 0.8)


@disturbance()
def loaded_by_assignment(world, r):
    state = {k: v.clone() for k, v in world.model.state_dict().items()}
    world.model.load_state_dict(state, assign=True)


@disturbance()
def requires_grad_flipped(world, r):
    p = _a_parameter(world, r)
    p.requires_grad_(not p.requires_grad)


@disturbance()
def all_frozen(world, r):
    world.model.requires_grad_(False)


@disturbance(in_loop)
def gradient_gone(world, r):
    p = _a_parameter(world, r)
    if r.random() < 0.5:
        world.mid.append(lambda: setattr(p, "grad", None))
    else:
        world.mid.append(lambda: delattr(p, "grad"))


@disturbance(in_loop)
def gradient_laid_out(world, r):
    p, how = _a_parameter(world, r), r.choice(("strides", "expanded", "sparse", "alias", "wide"))

    def act():
        if (grad := p.grad) is None:
            return
        if how == "strides":
            p.grad = torch.stack((grad, grad), -1)[..., 1]
        elif how == "expanded":
            p.grad = grad[:1].expand(grad.shape)
        elif how == "sparse":
            p.grad = grad.to_sparse()
        elif how == "alias":
            p.grad = grad.detach()[:]
        else:
            p.grad = grad.t().contiguous().t() if grad.dim() == 2 else grad

    world.mid.append(act)


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
    if not (found := _states(world)):
        return
    state, key = r.choice(found)
    how = r.choice(("number", "double", "strides", "none", "shape"))
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


@disturbance()
def input_of_inference(world, r):
    world.change_batch(lambda x, y: (_inferred(x), y))


@disturbance()
def target_of_inference(world, r):
    world.change_batch(lambda x, y: (x, _inferred(y)))


def _inferred(tensor):
    with torch.inference_mode():
        return tensor.clone()


@disturbance()
def input_with_gradient(world, r):
    world.change_batch(lambda x, y: (x.requires_grad_(), y))


@disturbance()
def parameters_share_memory(world, r):
    params = [p for p in world.parameters() if p.dim() == 1]
    pairs = [(p, q) for p in params for q in params if p is not q and p.shape == q.shape]
    if pairs:
        p, q = r.choice(pairs)
        p.data = q.data


@disturbance(both(in_loop))
def gradients_add_up(world, r):
    """A second backward pass before the update."""

    def act():
        x, y = world.batch(5)
        loss = world.loss_fn(world.model(x), y)
        loss.sum().backward()

    world.mid.append(act)


@disturbance()
def nan_in_parameter(world, r):
    p = _a_parameter(world, r)
    with torch.no_grad():
        p.flatten()[0].fill_(r.choice((float("nan"), float("inf"))))
