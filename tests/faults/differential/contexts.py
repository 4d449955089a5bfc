"""Disturbances that hold for a while: patched functions and classes, and modes. World enters them
around each operation for which they last, and leaves them in the opposite order."""

import contextlib
import warnings

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .disturbance import has_children, table

DISTURBANCES, disturbance = table()


def _lasts(world, r, make):
    """make() gives a context; it is entered for the next operation, or for all that follow."""
    world.contexts.append([make, r.choice((1, 1, 100))])


@contextlib.contextmanager
def _patched(owner, name, make):
    """owner.name is make(what it was)."""
    own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, make(before))
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def _halved(before):
    """The same with half the result."""

    def function(*args, **kwargs):
        return before(*args, **kwargs) * 0.5

    return function


def _patches(world, r, *places):
    owner, name = r.choice(places)
    _lasts(world, r, lambda: _patched(owner, name, _halved))


@disturbance(has_children)
def patched_function(world, r):
    _patches(world, r, (F, "linear"), (F, "linear"), (F, "relu"), (torch, "tanh"), (F, "gelu"))


@disturbance(has_children)
def patched_forward(world, r):
    kinds = (nn.Linear, nn.Linear, nn.ReLU, nn.Sequential, nn.Sequential, nn.GELU, nn.LayerNorm)
    _patches(world, r, *((kind, "forward") for kind in kinds))


@disturbance(has_children)
def patched_call(world, r):
    def make(before):
        def call(self, *args, **kwargs):
            result = before(self, *args, **kwargs)
            return result * 0.5 if isinstance(self, nn.Linear) else result

        return call

    owner = r.choice((nn.Module, nn.Linear, nn.Linear, nn.Sequential))
    name = r.choice(("__call__", "__call__", "_call_impl"))
    _lasts(world, r, lambda: _patched(owner, name, make))


@disturbance(has_children)
def patched_instance(world, r):
    module = r.choice(list(world.model.modules()))

    def make(before):
        return lambda *args, **kwargs: before(*args, **kwargs) * 0.5

    _lasts(world, r, lambda: _patched(module, "forward", make))


@disturbance(lambda plan: not plan.own_loss)
def patched_loss(world, r):
    name = {"CrossEntropyLoss": "cross_entropy", "MSELoss": "mse_loss"}.get(
        type(world.loss_fn).__name__
    )
    if name is None:
        return
    _patches(world, r, (F, name), (type(world.loss_fn), "forward"))


@disturbance()
def patched_step(world, r):
    """As loss scalers and mixed-precision wrappers do, on the instance or on the class."""
    optimizer = world.optimizer
    owner = optimizer if r.random() < 0.6 else type(optimizer)

    def make(before):
        def step(*args, **kwargs):
            world.note("patched step", 1)
            return before(*args, **kwargs)

        return step

    _lasts(world, r, lambda: _patched(owner, "step", make))


@disturbance()
def patched_zero_grad(world, r):
    def make(before):
        return lambda *args, **kwargs: before(*args, **kwargs)

    _lasts(world, r, lambda: _patched(world.optimizer, "zero_grad", make))


class Passing(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Coarse(TorchFunctionMode):
    """What quantizers do: only the signs of weights count."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.linear:
            args = (args[0], args[1].sign(), *args[2:])
        return func(*args, **(kwargs or {}))


class Halving(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result * 0.5 if func in (F.relu, F.gelu, torch.tanh, F.silu) else result


class PassingDispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class HalvingDispatch(TorchDispatchMode):
    """Half of each product of a layer."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result * 0.5 if func is torch.ops.aten.addmm.default else result


@disturbance()
def passing_mode(world, r):
    _lasts(world, r, r.choice((Passing, PassingDispatch)))


@disturbance(has_children)
def changing_mode(world, r):
    _lasts(world, r, r.choice((Coarse, Halving)))


@disturbance(has_children)
def changing_dispatch(world, r):
    _lasts(world, r, HalvingDispatch)


@disturbance()
def no_gradient(world, r):
    _lasts(world, r, r.choice((torch.no_grad, torch.inference_mode)))


@disturbance()
def anomaly(world, r):
    _lasts(world, r, lambda: torch.autograd.set_detect_anomaly(True))


@disturbance()
def autocast(world, r):
    _lasts(world, r, lambda: torch.autocast("cpu", torch.bfloat16))


@disturbance()
def default_device(world, r):
    _lasts(world, r, lambda: torch.device("cpu"))


@disturbance()
def default_dtype(world, r):
    @contextlib.contextmanager
    def other():
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)

    _lasts(world, r, other)


@disturbance()
def saved_tensors(world, r):
    make = torch.autograd.graph.saved_tensors_hooks
    kind = r.choice(("clone", "halve"))
    if kind == "clone":
        _lasts(world, r, lambda: make(lambda t: t.clone(), lambda t: t))
    else:
        _lasts(world, r, torch.autograd.graph.save_on_cpu)


@disturbance()
def profiled(world, r):
    _lasts(world, r, lambda: torch.autograd.profiler.profile(use_kineto=False))


@disturbance()
def warnings_are_errors(world, r):
    @contextlib.contextmanager
    def errors():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield

    _lasts(world, r, errors)


@disturbance()
def deterministic(world, r):
    @contextlib.contextmanager
    def only():
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)

    _lasts(world, r, only)
