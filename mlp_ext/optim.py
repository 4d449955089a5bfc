"""torch.optim's optimizers with one fused call a step, on the CPU and on CUDA.

Each class is a subclass of torch's, with its constructor, `param_groups`, hooks and `state_dict`;
only `step` is new. It reads groups and state as they stand, so states move between ours and torch's
in the middle of training. All tensors of all groups on the CPU go through one parallel region,
those on CUDA through a launch for every 64 that have a group, a dtype, a step count and a device in
common.

The kernels take dense float32, float64, bfloat16 and float16 parameters, with states laid out as
their parameter and gradients in any strides. If any parameter of a step is something else (complex,
sparse gradient, another device, a tensor subclass, overlapping memory), or an option is on that
they do not have (differentiable), torch's own step runs for all of them.

On CUDA `step` lies where torch keeps it: on the CPU, or on the device with `capturable` or `fused`,
and then nothing of it is read on the host, so that a step can be captured into a CUDA graph. A
learning rate that is a tensor on the device is read there. With `fused` a GradScaler leaves
unscaling, and passing over a step with infinities, to the kernels. `foreach` changes nothing.

One option is added, `master_weights=True` (of the constructor, or of a group): each bfloat16 or
float16 parameter has a float32 copy in `state[parameter]["master"]` and its other states in
float32; the step is taken in float32, and the parameter is the copy's rounding. An element of the
parameter that has been written to since the last step counts as it is, in place of its copy. The
state_dict keeps float32; the option may be turned on for a state_dict of torch's, and torch loads
ours, at the parameter's precision. Where torch's own step runs, it runs on the copies.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import optimizer as _torch_optimizer
from torch.optim.optimizer import Optimizer

from . import _masters
from ._load import _C

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop"]

_is_profiling = torch.autograd._profiler_enabled

_DONE, _MISSING_STATE = 0, 1  # StepResult in csrc/bindings/optimizer_items.h


def _own_step(optimizer_class: type[Optimizer]):
    """torch's step of a class, without the wrapper (profiler record and hooks) that the first
    instance of the class puts around it: our own step has done that part."""
    step = optimizer_class.step
    return step.__wrapped__ if getattr(step, "hooked", False) else step


def init_group(optimizer: Optimizer, group: dict) -> None:
    """Creates the state of the group's parameters that have a gradient and no state: torch's own
    function, without the lists that it fills for torch's step."""
    # By signature: torch.compile puts a wrapper around the function once it has run.
    lists = len(inspect.signature(optimizer._init_group).parameters) - 1
    optimizer._init_group(group, *([] for _ in range(lists)))


class _Fused(Optimizer):
    """What the optimizers share: closure, the fused step, and torch's own step where it does not
    apply. Subclasses name the compiled step and the torch class."""

    _compiled_step: Callable[..., int]
    _torch_class: type[Optimizer]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__init__ is _Fused.__init__:
            torchs = inspect.signature(cls._torch_class)
            ours = inspect.Parameter(
                "master_weights", inspect.Parameter.KEYWORD_ONLY, default=False
            )
            cls.__signature__ = torchs.replace(parameters=[*torchs.parameters.values(), ours])

    def __init__(self, *args: Any, master_weights: bool = False, **kwargs: Any) -> None:
        if master_weights and kwargs.get("differentiable"):
            raise RuntimeError("`master_weights` does not support `differentiable`")
        super().__init__(*args, **kwargs)
        if master_weights:
            self.defaults["master_weights"] = True
            for group in self.param_groups:
                group.setdefault("master_weights", True)
        for parameter in _masters.mastered(self):  # Adagrad has made 16-bit states
            self.state.pop(parameter, None)

    def step(self, closure=None):
        """One optimization step; see the class of the same name in torch.optim.

        Args:
            closure: a callable that clears the gradients, computes the loss and returns it, or
                None.

        Returns:
            What closure returned, or None.
        """
        # torch would wrap this method for hooks and the profiler: 7 us a step, also without any.
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _torch_optimizer._global_optimizer_pre_hooks
            or _torch_optimizer._global_optimizer_post_hooks
            or _is_profiling()
        ):
            # A subclass's own step has torch's wrapper, which has already run the hooks.
            if type(self).step is _Fused.step:
                return self._observed_step(*(() if closure is None else (closure,)))
        return self._step(closure)

    step.hooked = True  # type: ignore[attr-defined]  # says to torch that this has been seen to

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Resets all gradients: torch's zero_grad.

        Args:
            set_to_none: to None; False: to zeros.
        """
        if not set_to_none or _is_profiling() or torch.compiler.is_compiling():
            super().zero_grad(set_to_none)
        elif not _C.clear_grads(self.param_groups):
            super().zero_grad()

    def _step(self, closure=None):
        is_compiling = torch.compiler.is_compiling()
        if is_compiling and not _masters.has_masters(self):
            return _own_step(self._torch_class)(self, closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if is_compiling:
            self._torch_step()
            return loss
        # What torch.amp.GradScaler sets for the time of a step.
        scaling = (getattr(self, "grad_scale", None), getattr(self, "found_inf", None))
        result = self._compiled_step(self.param_groups, self.state, *scaling)
        if result == _MISSING_STATE:
            with _masters.in_place_of_parameters(self):
                for group in self.param_groups:
                    init_group(self, group)
            result = self._compiled_step(self.param_groups, self.state, *scaling)
        if result != _DONE:
            self._torch_step()
        return loss

    def _torch_step(self) -> None:
        if torch.compiler.is_compiling() and _masters.has_masters(self):
            raise RuntimeError("a step with `master_weights` is not for torch.compile")
        with _masters.in_place_of_parameters(self):
            _own_step(self._torch_class)(self)

    def load_state_dict(self, state_dict: dict) -> None:
        """torch's load_state_dict, which keeps float32 where the option master_weights is on.

        Args:
            state_dict: of ours or of torch's optimizer of that name.

        Raises:
            ValueError: as torch, for groups that do not fit.
        """
        _masters.load_state_dict(self, super().load_state_dict, state_dict)

    _observed_step = Optimizer.profile_hook_step(_step)


class SGD(_Fused, torch.optim.SGD):
    """torch.optim.SGD (momentum, dampening, Nesterov, weight decay) in one fused call a step.

    Args:
        *args: torch.optim.SGD's, params first.
        master_weights: keep float32 copies of bfloat16 and float16 parameters, and step on those.
        **kwargs: torch.optim.SGD's.

    Raises:
        RuntimeError: for master_weights together with differentiable.
        ValueError: as torch, for an option out of its range.
    """

    _compiled_step = staticmethod(_C.sgd_step)
    _torch_class = torch.optim.SGD


class Adam(_Fused, torch.optim.Adam):
    """torch.optim.Adam (Kingma & Ba 2015, arXiv:1412.6980; amsgrad) in one fused call a step.

    Args:
        *args: torch.optim.Adam's, params first.
        master_weights: keep float32 copies of bfloat16 and float16 parameters, and step on those.
        **kwargs: torch.optim.Adam's.

    Raises:
        RuntimeError: for master_weights together with differentiable.
        ValueError: as torch, for an option out of its range.
    """

    _compiled_step = staticmethod(_C.adam_step)
    _torch_class = torch.optim.Adam


class AdamW(_Fused, torch.optim.AdamW):
    """torch.optim.AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) in one fused call a step.

    Args:
        *args: torch.optim.AdamW's, params first.
        master_weights: keep float32 copies of bfloat16 and float16 parameters, and step on those.
        **kwargs: torch.optim.AdamW's.

    Raises:
        RuntimeError: for master_weights together with differentiable.
        ValueError: as torch, for an option out of its range.
    """

    _compiled_step = staticmethod(_C.adam_step)
    _torch_class = torch.optim.AdamW


class Adagrad(_Fused, torch.optim.Adagrad):
    """torch.optim.Adagrad (Duchi, Hazan & Singer 2011; lr_decay) in one fused call a step.

    Args:
        *args: torch.optim.Adagrad's, params first.
        master_weights: keep float32 copies of bfloat16 and float16 parameters, and step on those.
        **kwargs: torch.optim.Adagrad's.

    Raises:
        RuntimeError: for master_weights together with differentiable.
        ValueError: as torch, for an option out of its range.
    """

    _compiled_step = staticmethod(_C.adagrad_step)
    _torch_class = torch.optim.Adagrad


class RMSprop(_Fused, torch.optim.RMSprop):
    """torch.optim.RMSprop (Hinton 2012, Graves 2013; momentum, centered) in one fused call a step.

    Args:
        *args: torch.optim.RMSprop's, params first.
        master_weights: keep float32 copies of bfloat16 and float16 parameters, and step on those.
        **kwargs: torch.optim.RMSprop's.

    Raises:
        RuntimeError: for master_weights together with differentiable.
        ValueError: as torch, for an option out of its range.
    """

    _compiled_step = staticmethod(_C.rmsprop_step)
    _torch_class = torch.optim.RMSprop


class NAdam(_Fused, torch.optim.NAdam):
    """torch.optim.NAdam (Dozat 2016; decoupled weight decay) in one fused call a step.

    Args:
        *args: torch.optim.NAdam's, params first.
        master_weights: keep float32 copies of bfloat16 and float16 parameters, and step on those.
        **kwargs: torch.optim.NAdam's.

    Raises:
        RuntimeError: for master_weights together with differentiable.
        ValueError: as torch, for an option out of its range.
    """

    _compiled_step = staticmethod(_C.nadam_step)
    _torch_class = torch.optim.NAdam


class RAdam(_Fused, torch.optim.RAdam):
    """torch.optim.RAdam (Liu et al. 2020, arXiv:1908.03265; decoupled weight decay) in one call.

    Args:
        *args: torch.optim.RAdam's, params first.
        master_weights: keep float32 copies of bfloat16 and float16 parameters, and step on those.
        **kwargs: torch.optim.RAdam's.

    Raises:
        RuntimeError: for master_weights together with differentiable.
        ValueError: as torch, for an option out of its range.
    """

    _compiled_step = staticmethod(_C.radam_step)
    _torch_class = torch.optim.RAdam


class Adamax(_Fused, torch.optim.Adamax):
    """torch.optim.Adamax (Kingma & Ba 2015, section 7) in one fused call a step.

    Args:
        *args: torch.optim.Adamax's, params first.
        master_weights: keep float32 copies of bfloat16 and float16 parameters, and step on those.
        **kwargs: torch.optim.Adamax's.

    Raises:
        RuntimeError: for master_weights together with differentiable.
        ValueError: as torch, for an option out of its range.
    """

    _compiled_step = staticmethod(_C.adamax_step)
    _torch_class = torch.optim.Adamax
