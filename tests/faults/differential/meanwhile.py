"""Disturbances by a second thread. What comes of them depends on the moment, so that nothing is
compared: no crash, no hang, and an error that is one of the usual types."""

import threading

import torch

from .disturbance import table

DISTURBANCES, disturbance = table()

USUAL = (RuntimeError, ValueError, TypeError, IndexError)
STEPS = 20


def _steps(plan):
    return plan.entry == "step"


def _begins(world, of_step=True):
    """Whether there is something to run: ours alone, (of_step) with a TrainStep that runs.
    The case is over with it in any case."""
    world.over = True
    return world.ours and (world.step is not None or not of_step)


def _beside(world, work, call):
    """call() some times while another thread repeats work()."""
    stop = threading.Event()

    def repeat():
        while not stop.is_set():
            attempt(work)

    def attempt(function):
        try:
            function()
        except USUAL:
            pass
        except Exception as error:
            world.note("error beside a thread", type(error).__name__)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        for _ in range(STEPS):
            attempt(call)
    finally:
        stop.set()
        thread.join()


def _indices_of_ours(plan):
    """PyTorch's own backward pass trusts that the indices are as they were."""
    plain = plan.loss["kind"] == "ce" and plan.loss["target"] == "int64"
    usual = plain and plan.batch["rows"] and not plan.batch["middle"] and not plan.model["flatten"]
    return usual and (plan.own_loss or plan.entry == "step") and plan.dtype != torch.bfloat16


@disturbance(_indices_of_ours, alone=True)
def targets_written(world, r):
    x, y = world.batch(r.randrange(1 << 30))
    good = y.clone()
    beyond = torch.full_like(y, r.choice((10**9, -5, 1 << 60)))
    if not _begins(world, _steps(world.plan)):
        return

    def call():
        if world.step is not None:
            world.step(x, y)
        else:
            world.loss_fn(world.model(x), y).sum().backward()

    def work():
        y.copy_(beyond)
        y.copy_(good)

    _beside(world, work, call)


@disturbance(_steps, alone=True)
def called_by_two(world, r):
    x, y = world.batch(r.randrange(1 << 30))
    if _begins(world):
        _beside(world, lambda: world.step(x, y), lambda: world.step(x, y))


@disturbance(lambda plan: plan.entry != "epoch", alone=True)
def parameters_written(world, r):
    x, y = world.batch(r.randrange(1 << 30))

    def work():
        with torch.no_grad():
            for p in world.parameters():
                p.detach().mul_(1.0)

    def call():
        if world.step is not None:
            world.step(x, y)
        else:
            world.model(x)

    if _begins(world, False):
        _beside(world, work, call)


@disturbance(_steps, alone=True)
def surgery_meanwhile(world, r):
    """Options and children are replaced while a step runs."""
    x, y = world.batch(r.randrange(1 << 30))

    def work():
        for group in world.optimizer.param_groups:
            group["lr"] = float(group["lr"])
        for name, child in list(world.model.named_children()):
            setattr(world.model, name, child)
        world.optimizer.state = world.optimizer.state

    if _begins(world):
        _beside(world, work, lambda: world.step(x, y))
