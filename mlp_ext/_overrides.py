"""When a call is PyTorch's to make: a tensor's class, or a mode, wants to see its functions."""

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import _get_current_function_mode_stack  # type: ignore[attr-defined]
from torch.utils._device import DeviceContext


def are_overridden(*tensors: object) -> bool:
    """Of arguments of which has_torch_function() says that somebody wants to see their call.

    Then PyTorch's own functions are called, one by one, as a user would have: a class or a mode
    with a `__torch_function__` knows those, and has never heard of ours. The exception is
    torch.set_default_device: it is a mode, which only looks at calls that make tensors.
    """
    if torch.compiler.is_compiling():
        return True
    modes = _get_current_function_mode_stack()
    if not modes or any(type(mode) is not DeviceContext for mode in modes):
        return True
    return any(type(t) not in (Tensor, Parameter) and t is not None for t in tensors)
