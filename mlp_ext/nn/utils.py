"""torch.nn.utils' function that every training loop calls, in one compiled call."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .._load import _C

__all__ = ["clip_grad_norm_"]


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """torch.nn.utils.clip_grad_norm_: scales the gradients together to a norm of at most max_norm.

    The 2-norm of dense float32 or float64 gradients on the CPU or on one CUDA device takes one
    compiled call, whatever `foreach` is; torch's own function does the rest: other norms, 16-bit
    and complex and mixed dtypes, other devices and several of them, sparse and expanded gradients,
    gradients that share memory, Tensor subclasses, error_if_nonfinite on CUDA. On CUDA nothing
    waits: norm and factor stay there.

    Args:
        parameters: a tensor or tensors of any shape; those without a gradient count for nothing.
            Their gradients change in place.
        max_norm: the largest norm.
        norm_type: 2 for the 2-norm, or another of torch's.
        error_if_nonfinite: whether a norm of NaN or Inf is an error.
        foreach: for torch's own function, where that runs.

    Returns:
        The norm of all gradients together before the scaling, ().

    Raises:
        RuntimeError: for a norm of NaN or Inf, if error_if_nonfinite is set; for a gradient whose
            memory has been freed.
    """
    arguments: tuple[Any, ...] = (max_norm, norm_type, error_if_nonfinite, foreach)
    if not is_compiling():
        if isinstance(parameters, Tensor):
            listed = [parameters]
        else:
            listed = list(parameters)
            parameters = listed or parameters  # torch warns of a generator that has nothing
        if float(norm_type) == 2.0:
            norm = _C.clip_grad_norm(listed, float(max_norm), bool(error_if_nonfinite))
            if norm is not None:
                return norm
        _C.refuse_freed([p.grad for p in listed if isinstance(p, Tensor)])
    return torch.nn.utils.clip_grad_norm_(parameters, *arguments)
