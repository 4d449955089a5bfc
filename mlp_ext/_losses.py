"""cross_entropy of mlp_ext.functional: torch.nn.functional's, with loss and gradient from one pass.

Signature, results, warnings and errors are those of the function of the same name there. What the
kernels do not take runs as PyTorch's own operators: see mlp_ext.functional.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import _reduction
from torch.overrides import has_torch_function

from ._arguments import FLOAT, INT, OPTIONAL, TENSOR, type_error
from ._load import _C
from ._overrides import are_overridden

_REDUCTION_CODES = {"none": 0, "mean": 1, "sum": 2}


def reduction_code(reduction: str, size_average: bool | None, reduce: bool | None) -> int:
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    code = _REDUCTION_CODES.get(reduction) if isinstance(reduction, str) else None
    if code is None:
        raise ValueError(f"{reduction!r} is not a valid value for reduction: none, mean or sum")
    return code


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """torch.nn.functional.cross_entropy, with loss and gradient from one pass over the logits.

    Probabilities of which a gradient is wanted, or of another dtype than the logits, go to
    PyTorch's own operators.

    Args:
        input: the logits, (N, C, d1, ...), (N, C) or (C,), of a floating-point dtype.
        target: class indices int64, (N, d1, ...), (N,) or (); or probabilities of input's shape and
            dtype.
        weight: of each class, (C,), or None.
        size_average: deprecated, see torch.nn.functional.
        ignore_index: a row with this class index counts for nothing, whatever is in it: its
            gradient is 0 also of logits that are NaN, of which PyTorch's is NaN.
        reduce: deprecated, see torch.nn.functional.
        reduction: "mean", "sum" or "none". "mean" divides by the weights of the rows that
            count, for probabilities by N.
        label_smoothing: from 0 to 1, the part of the target that is spread over all classes.

    Returns:
        (), or of target's shape without C for "none"; of input's dtype.

    Raises:
        IndexError: for a class index out of range, with the value and its place (on CUDA the loss
            is NaN in place of it).
        ValueError: for an unknown reduction.
        RuntimeError: as PyTorch, for shapes or dtypes that do not fit together.
        TypeError: for an argument of another type.
    """
    compiling = torch.compiler.is_compiling()
    overridden = has_torch_function((input, target, weight)) and are_overridden(
        input, target, weight
    )
    if overridden or (compiling and torch.compiler.is_exporting()):
        return F.cross_entropy(
            input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing
        )
    code = reduction_code(reduction, size_average, reduce)
    op = torch.ops.mlp_ext.cross_entropy if compiling else _C.cross_entropy
    try:
        return op(input, target, weight, code, ignore_index, label_smoothing)
    except TypeError as error:
        raise type_error(
            error,
            "cross_entropy",
            input=(input, TENSOR),
            target=(target, TENSOR),
            weight=(weight, OPTIONAL),
            ignore_index=(ignore_index, INT),
            label_smoothing=(label_smoothing, FLOAT),
        ) from None
