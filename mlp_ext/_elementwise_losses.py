"""The elementwise losses of mlp_ext.functional, with loss and gradient from one pass.

Signatures, results, warnings and errors are those of torch.nn.functional's functions of the same
name. What the kernels do not take runs as PyTorch's own operators: see mlp_ext.functional.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import has_torch_function

from ._arguments import FLOAT, OPTIONAL, TENSOR, type_error
from ._load import _C
from ._losses import reduction_code
from ._ops import LOSS_CODES
from ._overrides import are_overridden

_untyped: Any = F  # torch's stubs know no weight of these losses

_MSE, _L1, _HUBER, _SMOOTH_L1, _BCE = (
    LOSS_CODES[name] for name in ("mse", "l1", "huber", "smooth_l1", "bce_with_logits")
)


def _elementwise(
    name: str,
    kind: int,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    parameter: float = 0.0,
    pos_weight: Tensor | None = None,
    parameter_name: str = "parameter",
) -> Tensor:
    compiling = torch.compiler.is_compiling()
    op = torch.ops.mlp_ext.elementwise_loss if compiling else _C.elementwise_loss
    try:
        return op(input, target, weight, pos_weight, kind, reduction, parameter)
    except TypeError as error:
        raise type_error(
            error,
            name,
            input=(input, TENSOR),
            target=(target, TENSOR),
            weight=(weight, OPTIONAL),
            pos_weight=(pos_weight, OPTIONAL),
            **{parameter_name: (parameter, FLOAT)},
        ) from None


def _are_alike(input: Tensor, target: Tensor, weight: Tensor | None = None) -> bool:
    """False for what PyTorch warns of or refuses: it shall say so itself. Also in a torch.export,
    whose program has to do without this package."""
    if torch.compiler.is_exporting():
        return False
    try:
        return input.shape == target.shape and (weight is None or weight.shape == input.shape)
    except AttributeError:
        return False


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """torch.nn.functional.mse_loss, with loss and gradient from one pass.

    Where input and target broadcast, PyTorch's function itself is called, which warns.

    Args:
        input: of any shape, of a floating-point dtype.
        target: of input's shape and dtype.
        size_average: deprecated, see torch.nn.functional.
        reduce: deprecated, see torch.nn.functional.
        reduction: "mean", "sum" or "none".
        weight: of input's shape, or None.

    Returns:
        (), or of input's shape for "none"; of input's dtype.

    Raises:
        ValueError: for an unknown reduction.
        RuntimeError: as PyTorch, for shapes or dtypes that do not fit together.
        TypeError: for an argument of another type.
    """
    overridden = has_torch_function((input, target, weight)) and are_overridden(
        input, target, weight
    )
    if overridden or not _are_alike(input, target, weight):
        return _untyped.mse_loss(input, target, size_average, reduce, reduction, weight)
    code = reduction_code(reduction, size_average, reduce)
    return _elementwise("mse_loss", _MSE, input, target, weight, code)


def l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """torch.nn.functional.l1_loss, with loss and gradient from one pass.

    Where input and target broadcast, PyTorch's function itself is called, which warns.

    Args:
        input: of any shape, of a floating-point dtype.
        target: of input's shape and dtype.
        size_average: deprecated, see torch.nn.functional.
        reduce: deprecated, see torch.nn.functional.
        reduction: "mean", "sum" or "none".
        weight: of input's shape, or None.

    Returns:
        (), or of input's shape for "none"; of input's dtype.

    Raises:
        ValueError: for an unknown reduction.
        RuntimeError: as PyTorch, for shapes or dtypes that do not fit together.
        TypeError: for an argument of another type.
    """
    overridden = has_torch_function((input, target, weight)) and are_overridden(
        input, target, weight
    )
    if overridden or not _are_alike(input, target, weight):
        return _untyped.l1_loss(input, target, size_average, reduce, reduction, weight)
    code = reduction_code(reduction, size_average, reduce)
    return _elementwise("l1_loss", _L1, input, target, weight, code)


def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """torch.nn.functional.huber_loss, with loss and gradient from one pass.

    Where input and target broadcast, PyTorch's function itself is called, which warns.

    Args:
        input: of any shape, of a floating-point dtype.
        target: of input's shape and dtype.
        reduction: "mean", "sum" or "none".
        delta: above 0; where the square ends and the line begins.
        weight: of input's shape, or None.

    Returns:
        (), or of input's shape for "none"; of input's dtype.

    Raises:
        ValueError: for an unknown reduction.
        RuntimeError: as PyTorch, for shapes or dtypes that do not fit together.
        TypeError: for an argument of another type.
    """
    overridden = has_torch_function((input, target, weight)) and are_overridden(
        input, target, weight
    )
    if overridden or not _are_alike(input, target, weight):
        return _untyped.huber_loss(input, target, reduction, delta, weight)
    code = reduction_code(reduction, None, None)
    return _elementwise("huber_loss", _HUBER, input, target, weight, code, delta, None, "delta")


def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Tensor:
    """torch.nn.functional.smooth_l1_loss, with loss and gradient from one pass.

    Where input and target broadcast, PyTorch's function itself is called, which warns.

    Args:
        input: of any shape, of a floating-point dtype.
        target: of input's shape and dtype.
        size_average: deprecated, see torch.nn.functional.
        reduce: deprecated, see torch.nn.functional.
        reduction: "mean", "sum" or "none".
        beta: at least 0; where the square ends and the line begins. At 0 it is the L1 loss.

    Returns:
        (), or of input's shape for "none"; of input's dtype.

    Raises:
        ValueError: for an unknown reduction.
        RuntimeError: as PyTorch, for shapes or dtypes that do not fit together.
        TypeError: for an argument of another type.
    """
    overridden = has_torch_function((input, target)) and are_overridden(input, target)
    if overridden or not _are_alike(input, target):
        return F.smooth_l1_loss(input, target, size_average, reduce, reduction, beta)
    code = reduction_code(reduction, size_average, reduce)
    kind = _L1 if beta == 0.0 else _SMOOTH_L1
    return _elementwise("smooth_l1_loss", kind, input, target, None, code, beta, None, "beta")


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """torch.nn.functional.binary_cross_entropy_with_logits, with loss and gradient from one pass.

    A pos_weight that broadcasts otherwise than below, and a target of which a gradient is wanted,
    go to PyTorch's own operators.

    Args:
        input: the logits, of any shape, of a floating-point dtype.
        target: of input's shape and dtype, from 0 to 1.
        weight: broadcasts to input's shape, or None.
        size_average: deprecated, see torch.nn.functional.
        reduce: deprecated, see torch.nn.functional.
        reduction: "mean", "sum" or "none".
        pos_weight: of the positive answers: one element, or one for each of the last dimension.

    Returns:
        (), or of input's shape for "none"; of input's dtype.

    Raises:
        ValueError: for an unknown reduction, and as PyTorch for a target of another shape.
        RuntimeError: as PyTorch, for shapes or dtypes that do not fit together.
        TypeError: for an argument of another type.
    """
    overridden = has_torch_function((input, target, weight, pos_weight)) and are_overridden(
        input, target, weight, pos_weight
    )
    if overridden or not _are_alike(input, target):
        return F.binary_cross_entropy_with_logits(
            input, target, weight, size_average, reduce, reduction, pos_weight
        )
    code = reduction_code(reduction, size_average, reduce)
    return _elementwise(
        "binary_cross_entropy_with_logits",
        _BCE,
        input,
        target,
        weight,
        code,
        pos_weight=pos_weight,
    )
