"""torch.optim's optimizers with one fused call a step, on the CPU and on CUDA.

Each class is a subclass of torch's, with its constructor, `param_groups`, hooks and `state_dict`;
only `step` is new. It reads groups and state as they stand, so states move between ours and torch's
in the middle of training. All tensors of all groups on the CPU go through one parallel region,
those on CUDA through a launch for every 64 that have a group, a dtype, a step count and a device in
common.

The kernels take dense float32, float64, bfloat16 and float16 parameters, with states laid out as
their parameter and gradients in any strides. If any parameter of a step is something else (complex,
sparse gradient, another device, a tensor subclass, memory or states in common), or an option is on
that they do not have (differentiable), torch's own step runs for all of them. So it does, to give
what it gives or raise what it raises, for an option that is no number or out of its range, for
groups and states in containers that answer in ways of their own, and for a subclass that overrides
`_init_group`. Options may be NumPy's numbers, and `lr` and `weight_decay` tensors of one element.

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

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch.optim import optimizer as _torch_optimizer
from torch.optim.optimizer import Optimizer

from . import _masters
from ._load import _C
from ._torch_optim import Rule, constructor, init_group, refuse_freed

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop"]

_is_profiling = torch.autograd._profiler_enabled

_DONE, _MISSING_STATE = 0, 1  # StepResult in csrc/bindings/optimizer_items.h


class _Fused(Optimizer):
    """What the optimizers share. The functions behind it are none of its methods: a subclass may
    give its own methods and attributes any name but the one here that begins with _mlp_ext."""

    _mlp_ext_rule: ClassVar[Rule]

    def __init__(self, *args: Any, master_weights: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if master_weights and self.defaults.get("differentiable"):
            raise RuntimeError("`master_weights` does not support `differentiable`")
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

        Raises:
            RuntimeError: for a parameter, gradient or state whose memory has been freed
                (`untyped_storage().resize_(0)`), with nothing changed.
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
            if getattr(type(self).step, "__code__", None) is not _observed_step.__code__:
                return _observed_step(self, *(() if closure is None else (closure,)))
        return _step(self, closure)

    step.hooked = True  # type: ignore[attr-defined]  # says to torch that this has been seen to

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Resets all gradients: torch's zero_grad.

        Args:
            set_to_none: to None; False: to zeros.

        Raises:
            RuntimeError: for zeros to be written to a gradient whose memory has been freed.
        """
        if not set_to_none:
            if not torch.compiler.is_compiling():
                refuse_freed(self, with_state=False)
            super().zero_grad(set_to_none)
        elif _is_profiling() or torch.compiler.is_compiling():
            super().zero_grad()
        elif not _C.clear_grads(self.param_groups):
            super().zero_grad()

    def load_state_dict(self, state_dict: dict) -> None:
        """torch's load_state_dict, which keeps float32 where the option master_weights is on.

        Args:
            state_dict: of ours or of torch's optimizer of that name.

        Raises:
            ValueError: as torch, for groups that do not fit.
        """
        _masters.load_state_dict(self, super().load_state_dict, state_dict)


def _step(self: Any, closure=None):
    rule = self._mlp_ext_rule
    is_compiling = torch.compiler.is_compiling()
    if is_compiling and not _masters.has_masters(self):
        return rule.torchs_step()(self, closure)
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    # The first test is the second's own, here without a call.
    makes_states = getattr(self._init_group, "__func__", None) is rule.init_group
    if is_compiling or not (makes_states or rule.has_torchs_init_group(self)):
        _take_torchs_step(self)
        return loss
    # What torch.amp.GradScaler sets for the time of a step.
    scaling = (getattr(self, "grad_scale", None), getattr(self, "found_inf", None))
    result = rule.step(self.param_groups, self.state, *scaling)
    if result == _MISSING_STATE:
        refuse_freed(self)
        with _masters.in_place_of_parameters(self):
            for group in self.param_groups:
                init_group(self, group)
        result = rule.step(self.param_groups, self.state, *scaling)
    if result != _DONE:
        _take_torchs_step(self)
    return loss


_observed_step = Optimizer.profile_hook_step(_step)


def _take_torchs_step(self: Any) -> None:
    if torch.compiler.is_compiling() and _masters.has_masters(self):
        raise RuntimeError("a step with `master_weights` is not for torch.compile")
    refuse_freed(self)
    with _masters.in_place_of_parameters(self):
        self._mlp_ext_rule.torchs_step()(self)


def _of_torch(compiled_step: Callable[..., int]) -> Callable[[type], type]:
    """Of a class whose second base is torch's: its rule and its constructor."""

    def complete(cls: Any) -> type:
        torch_class = cls.__bases__[1]
        cls._mlp_ext_rule = Rule(compiled_step, torch_class)
        cls.__init__ = constructor(_Fused, torch_class)
        cls.__init__.__qualname__, cls.__init__.__module__ = f"{cls.__name__}.__init__", __name__
        return cls

    return complete


@_of_torch(_C.sgd_step)
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


@_of_torch(_C.adam_step)
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


@_of_torch(_C.adam_step)
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


@_of_torch(_C.adagrad_step)
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


@_of_torch(_C.rmsprop_step)
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


@_of_torch(_C.nadam_step)
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


@_of_torch(_C.radam_step)
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


@_of_torch(_C.adamax_step)
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
