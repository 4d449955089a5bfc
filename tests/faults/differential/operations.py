"""What a program does between and in its steps: (world, random.Random) each."""

import contextlib
import gc

import torch
from torch import nn
from torch.utils._device import DeviceContext
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from .optimizers import change_options


def train(world, r):
    if not world.keeps_flags:
        world.model.train()
    seed = r.randrange(1 << 30)
    if world.plan.entry == "epoch":
        loss = world.epoch(seed, r)
    else:
        loss = world.train(*world.batch(seed), r)
    if world.scheduler is not None:
        world.scheduler.step()
    world.note("loss", loss.detach())


def evaluate(world, r):
    flags = [(m, m.training) for m in world.model.modules()]
    world.model.eval()
    with torch.no_grad():
        output = world.model(world.batch(r.randrange(1 << 30))[0])
    world.note("evaluation", output.clone())
    for module, flag in flags:
        module.training = flag


def forward(world, r):
    output = world.model(world.batch(r.randrange(1 << 30))[0])
    world.note("wants a gradient", output.requires_grad)
    world.note("output", output.detach().clone())


def save_load(world, r):
    model, optimizer = world.model.state_dict(), world.optimizer.state_dict()
    kept = {k: v.clone() for k, v in model.items()}
    states = torch.utils._pytree.tree_map(
        lambda v: v.clone() if isinstance(v, torch.Tensor) else v, optimizer
    )
    with torch.no_grad():
        for p in world.parameters():
            p.zero_()
    world.model.load_state_dict(kept)
    world.optimizer.load_state_dict(states)


def copy(world, r):
    world.copied(pickled=False)


def pickle(world, r):
    if world.plan.optimizer["subclass"] is None and world.scheduler is None:
        world.copied(pickled=True)


def options(world, r):
    world.note("options", change_options(r, world))


def double_backward(world, r):
    x = world.batch(r.randrange(1 << 30))[0].detach().requires_grad_()
    output = world.model(x)
    (first,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    wanted = [p for p in world.parameters() if p.requires_grad]
    seconds = torch.autograd.grad(first.square().sum(), wanted, allow_unused=True)
    world.note("second derivatives", [g if g is None else g.detach() for g in seconds])


def functional_call(world, r):
    x = world.batch(r.randrange(1 << 30))[0]
    others = {k: v.detach() * 0.5 for k, v in world.model.named_parameters()}
    world.note("other parameters", torch.func.functional_call(world.model, others, (x,)).detach())


def stale_backward(world, r):
    """Backward through a graph whose parameters have been updated since."""
    x = world.batch(r.randrange(1 << 30))[0]
    output = world.model(x).sum()
    kept = [p.grad for p in world.parameters()]
    train(world, r)
    error, noted = None, len(world.log)
    if output.requires_grad:
        with contextlib.suppress(RuntimeError):
            output.backward()
            error = "none"
    # PyTorch's fused optimizers count no versions, and its products of no rows look at none.
    if world.plan.optimizer["options"].get("fused") or not world.plan.batch["rows"]:
        del world.log[noted:]
    else:
        world.note("stale backward", error)
    for p, grad in zip(world.parameters(), kept, strict=True):
        p.grad = grad


def second_update(world, r):
    """With the gradients that there are, if by hand: TrainStep leaves none."""
    if world.plan.entry == "loop":
        world.optimizer.step()


def zeroed(world, r):
    world.optimizer.zero_grad(set_to_none=False)


def checkpointed(world, r):
    """backward() leaves function modes, and subclasses' functions, before it recomputes. Without
    them a layer of ours saves other tensors, and the form of checkpoint that compares them raises
    (test_saved_tensors)."""
    x = world.batch(r.randrange(1 << 30))[0].detach().requires_grad_()
    modes = torch.overrides._get_current_function_mode_stack()
    plain = all(type(p) in (torch.Tensor, nn.Parameter) for p in world.parameters())
    compares = plain and all(isinstance(mode, DeviceContext) for mode in modes)
    checkpoint(world.model, x, use_reentrant=not compares).square().sum().backward()
    world.note("gradient by recomputation", x.grad)


def vmapped(world, r):
    x = world.batch(r.randrange(1 << 30))[0]
    flags = [(m, m.training) for m in world.model.modules()]
    world.model.eval()
    world.note("in a transform", torch.func.vmap(world.model)(x).detach())
    for module, flag in flags:
        module.training = flag


def pause(world, r):
    gc.collect(0)


def flops(world, r):
    x = world.batch(r.randrange(1 << 30))[0]
    with FlopCounterMode(display=False) as counter:
        world.model(x).sum().backward()
    world.note("flops", counter.get_total_flops())
    nn.Module.zero_grad(world.model)


OPERATIONS = {
    function.__name__: function
    for function in (
        train,
        evaluate,
        forward,
        save_load,
        copy,
        pickle,
        options,
        double_backward,
        functional_call,
        stale_backward,
        second_update,
        zeroed,
        checkpointed,
        vmapped,
        pause,
        flops,
    )
}
