"""Disturbances of modules: replaced children, hooks of each kind, subclasses of Tensor."""

import gc
import weakref

import torch
from torch import nn
from torch.nn.modules import module as modules
from torch.optim import optimizer as optimizers

from .disturbance import has_children, table

DISTURBANCES, disturbance = table()


def _place(world, wanted):
    """(parent, name) of a module."""
    for parent in world.model.modules():
        for name, child in parent.named_children():
            if child is wanted:
                return parent, name
    return None, None


def _replacement(world, r):
    old = r.choice(world.linears())
    parent, name = _place(world, old)
    new = nn.Linear(old.in_features, old.out_features, old.bias is not None).to(world.dtype)
    return parent, name, old, new


@disturbance(has_children)
def head_replaced(world, r):
    """The old one's parameters stay in the optimizer."""
    parent, name, old, new = _replacement(world, r)
    if parent is not None:
        setattr(parent, name, new)
        if r.random() < 0.7:
            world.optimizer.add_param_group({"params": list(new.parameters())})


@disturbance(has_children)
def activation_replaced(world, r):
    found = [m for m in world.model.modules() if isinstance(m, nn.ReLU | nn.Tanh | nn.GELU)]
    if found:
        parent, name = _place(world, r.choice(found))
        if parent is not None:
            setattr(parent, name, r.choice((nn.Tanh(), nn.Hardtanh(), nn.LeakyReLU(0.2))))


@disturbance(has_children)
def child_added(world, r):
    found = [m for m in world.model.modules() if isinstance(m, nn.Sequential) and len(m)]
    if found:
        r.choice(found).append(r.choice((nn.Identity(), nn.Tanh(), nn.Softsign())))


@disturbance(has_children)
def bias_taken_away(world, r):
    r.choice(world.linears()).bias = None


@disturbance(has_children)
def attribute_changed(world, r):
    for module in world.model.modules():
        if isinstance(module, nn.LeakyReLU):
            module.negative_slope = 0.5
        elif isinstance(module, nn.ELU):
            module.alpha = 2.0
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.BatchNorm1d):
            module.momentum = 0.3
        elif isinstance(module, nn.LayerNorm):
            module.eps = 0.1
    world.model.note = [1]


@disturbance(has_children)
def some_in_evaluation(world, r):
    for module in world.model.modules():
        module.training = r.random() < 0.5
    world.keeps_flags = True


def _a_module(world, r):
    return r.choice([m for m in world.model.modules()])


@disturbance(has_children)
def module_hook(world, r):
    module = _a_module(world, r)
    kind = r.choice(("forward", "forward_pre", "full_backward", "full_backward_pre"))
    changes = r.random() < 0.5

    def halved(value):
        if isinstance(value, tuple):
            return tuple(None if v is None else v * 0.5 for v in value)
        return value * 0.5

    def hook(module, *values):
        world.note(f"{kind} hook", len(values))
        if not changes:
            return None
        if kind in ("forward_pre", "full_backward_pre"):
            return halved(values[0])
        return halved(values[1] if kind == "forward" else values[0])

    handle = getattr(module, f"register_{kind}_hook")(hook)
    if r.random() < 0.3:
        world.after_next.append(handle.remove)


@disturbance(has_children)
def hook_for_all_modules(world, r):
    kind = r.choice(("forward", "forward_pre", "full_backward"))
    register = getattr(modules, f"register_module_{kind}_hook")
    handle = register(lambda module, *_: world.note("hook for all", len(list(module.children()))))
    world.at_end(handle.remove)
    if r.random() < 0.5:
        world.after_next.append(handle.remove)


@disturbance()
def tensor_hook(world, r):
    p = r.choice(world.parameters())
    if not p.requires_grad:
        return
    if r.random() < 0.5:
        p.register_hook(lambda grad: grad * 0.5)
    else:
        p.register_post_accumulate_grad_hook(lambda q: q.grad.mul_(0.5))


@disturbance()
def node_hook(world, r):
    """On the node that accumulates a parameter's gradient, as data-parallel wrappers do."""
    p, kind = r.choice(world.parameters()), r.choice(("pre", "post", "tensor_pre"))
    if not p.requires_grad:
        return
    node = p.expand_as(p).grad_fn.next_functions[0][0]
    if kind == "post":
        node.register_hook(lambda *_: world.note("node hook", 1))
    elif kind == "pre":
        node.register_prehook(lambda grads: tuple(g * 0 for g in grads))
    else:
        p.register_hook(lambda grad: grad * 2)
    world.keep.append(node)


# Whether a method of a subclass that calls PyTorch's is hooked twice depends on the instances that
# the process had before.
@disturbance(lambda plan: plan.optimizer["subclass"] not in ("counter", "own_step"))
def optimizer_hook(world, r):
    kind = r.choice(("pre", "post"))
    if r.random() < 0.5:
        world.note("hooks of the optimizer", kind)
        getattr(world.optimizer, f"register_step_{kind}_hook")(
            lambda *_: world.note("step hook", kind)
        )
        return
    register = getattr(optimizers, f"register_optimizer_step_{kind}_hook")
    world.at_end(register(lambda *_: world.note("step hook for all", kind)).remove)


class Plain(torch.Tensor):
    """A subclass that changes nothing."""


class Signs(torch.Tensor):
    """As a quantized weight: it knows F.linear, in which its sign counts, and nothing of ours."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if func is nn.functional.linear and type(args[1]) is cls:
                args = (args[0], args[1].sign(), *args[2:])
            return func(*args, **(kwargs or {}))


@disturbance()
def weight_of_a_subclass(world, r):
    kind, linear = r.choice((Plain, Signs)), r.choice(world.linears())
    old = linear.weight
    if "weight" not in linear._parameters or old.is_inference():
        return
    new = nn.Parameter(old.detach().clone().as_subclass(kind))
    linear._parameters["weight"] = new
    for group in world.optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]


@disturbance()
def weight_of_inference(world, r):
    linear = r.choice(world.linears())
    if "weight" in linear._parameters:
        with torch.inference_mode():
            linear.weight = nn.Parameter(linear.weight.detach().clone())


@disturbance()
def input_of_a_subclass(world, r):
    world.change_batch(lambda x, y: (x.as_subclass(Plain), y))


@disturbance()
def input_a_parameter(world, r):
    world.change_batch(lambda x, y: (nn.Parameter(x.detach(), requires_grad=False), y))


@disturbance()
def cycle(world, r):
    """The model refers to what trains it; all of it must go in the end."""
    world.model.trainer = [world.step, world.optimizer]
    world.cyclic = weakref.ref(world.model)
    if r.random() < 0.5:
        gc.collect()


@disturbance(has_children)
def parametrized(world, r):
    linear = r.choice(world.linears())
    if "weight" in linear._parameters:
        nn.utils.parametrizations.weight_norm(linear)


@disturbance(has_children)
def pruned(world, r):
    linear = r.choice(world.linears())
    if "weight" in linear._parameters:
        nn.utils.prune.l1_unstructured(linear, "weight", 0.3)
