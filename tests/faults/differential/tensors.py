"""Disturbances of tensors: data, gradients, dtypes, batches. Each is made of what a program may do
to its own objects; PyTorch says what comes of it."""

import torch
from torch import nn

from .disturbance import both, in_loop, reads_strides, table

DISTURBANCES, disturbance = table()


def a_parameter(world, r):
    return r.choice(world.parameters())


def states_of(world):
    states = [s for s in map(world.optimizer.state.get, world.parameters()) if s]
    return [(s, k) for s in states for k, v in s.items() if isinstance(v, torch.Tensor)]


@disturbance()
def data_replaced(world, r):
    hows = ("same", "double", "shape", "view", "strides")[: 4 + reads_strides(world.plan)]
    p, how = a_parameter(world, r), r.choice(hows)
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
    p = a_parameter(world, r)
    with torch.no_grad():
        p.set_(p.detach() * 0.5)


@disturbance()
def swapped(world, r):
    p = a_parameter(world, r)
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
    world.convert(
        r.choice((torch.float64, torch.float32, torch.bfloat16, torch.float16)), r.random() < 0.8
    )


@disturbance()
def loaded_by_assignment(world, r):
    state = {k: v.clone() for k, v in world.model.state_dict().items()}
    world.model.load_state_dict(state, assign=True)


@disturbance()
def requires_grad_flipped(world, r):
    p = a_parameter(world, r)
    p.requires_grad_(not p.requires_grad)


@disturbance()
def all_frozen(world, r):
    world.model.requires_grad_(False)


@disturbance(in_loop)
def gradient_gone(world, r):
    p = a_parameter(world, r)
    if r.random() < 0.5:
        world.mid.append(lambda: setattr(p, "grad", None))
    else:
        world.mid.append(lambda: delattr(p, "grad"))


@disturbance(both(in_loop, reads_strides))
def gradient_laid_out(world, r):
    p, how = a_parameter(world, r), r.choice(("strides", "expanded", "sparse", "alias", "wide"))

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


@disturbance(in_loop)
def gradients_add_up(world, r):
    """A second backward pass before the update."""

    def act():
        x, y = world.batch(5)
        loss = world.loss_fn(world.model(x), y)
        loss.sum().backward()

    world.mid.append(act)


# PyTorch's gradient of an ignored row is NaN where its logits are; ours is 0.
@disturbance(lambda plan: "ignore_index" not in plan.loss["options"])
def nan_in_parameter(world, r):
    p = a_parameter(world, r)
    with torch.no_grad():
        value = r.choice((float("nan"), float("inf")))
        if any(part[:2] == ("norm", "batch") for part in world.plan.model["body"]):
            value = float("nan")  # infinite scales: PyTorch takes infinities from each other
        p.flatten()[0].fill_(value)
