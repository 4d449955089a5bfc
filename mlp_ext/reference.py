"""Every op of this package in a few lines of plain, differentiable PyTorch.

This file is the specification, the oracle of the tests and the baseline of the benchmarks: whatever
a kernel does, it must agree with the function of the same name here, for values, gradients, dtypes,
broadcasting and exceptions. Nothing here is tuned, and nothing here calls the extension.

    Y[M, N] = act(X[M, K] W[N, K]^T + b[N])        M batch, K in_features, N out_features
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ._reference_rules import (
    adagrad_step,
    adam_step,
    adamax_step,
    nadam_step,
    radam_step,
    rmsprop_step,
    sgd_step,
)

__all__ = [
    "activate",
    "adagrad_step",
    "adam_step",
    "adamax_step",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "huber_loss",
    "l1_loss",
    "linear",
    "linear_relu",
    "mlp",
    "mse_loss",
    "nadam_step",
    "radam_step",
    "rmsprop_step",
    "sgd_step",
    "smooth_l1_loss",
]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "softplus": F.softplus,
}
"""Name -> function of one tensor. PyTorch's defaults: negative_slope 0.01, alpha 1, beta 1,
threshold 20; "gelu" is the erf form, "gelu_tanh" the approximation of arXiv:1606.08415."""


def activate(input: Tensor, activation: str | None) -> Tensor:
    """`activation` of each element; None is the identity.

    Args:
        input: of any shape.
        activation: None or a key of `ACTIVATIONS`.

    Returns:
        Of input's shape and dtype.

    Raises:
        ValueError: for an unknown name.
    """
    if activation is None:
        return input
    if activation not in ACTIVATIONS:
        names = ", ".join(repr(name) for name in ACTIVATIONS)
        raise ValueError(f"unknown activation {activation!r}; expected one of None, {names}")
    return ACTIVATIONS[activation](input)


def linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None
) -> Tensor:
    """act(input weight^T + bias), by torch.nn.functional.linear.

    Args:
        input: (..., K).
        weight: (N, K).
        bias: (N,) or None.
        activation: as in `activate`.

    Returns:
        (..., N).

    Raises:
        ValueError: for an unknown activation.
        RuntimeError: for shapes or dtypes that do not fit together.
    """
    return activate(F.linear(input, weight, bias), activation)


def linear_relu(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """relu(input weight^T + bias), by torch.nn.functional.linear.

    Args:
        input: (..., K).
        weight: (N, K).
        bias: (N,) or None.

    Returns:
        (..., N).
    """
    return linear(input, weight, bias, activation="relu")


def mlp(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None,
    *,
    activation: str | None = "relu",
    final_activation: str | None = None,
) -> Tensor:
    """A stack of `linear` layers: `activation` after all but the last, `final_activation` there.

    Args:
        input: (..., sizes[0]).
        weights: weights[i] is (sizes[i+1], sizes[i]).
        biases: biases[i] is (sizes[i+1],) or None; None for none at all.
        activation: as in `activate`.
        final_activation: as in `activate`.

    Returns:
        (..., sizes[-1]).

    Raises:
        ValueError: for an empty stack, and where the two lists differ in length.
    """
    biases = [None] * len(weights) if biases is None else biases
    if not weights or len(weights) != len(biases):
        raise ValueError(f"got {len(weights)} weights and {len(biases)} biases")
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        name = final_activation if i == len(weights) - 1 else activation
        input = linear(input, weight, bias, activation=name)
    return input


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
    """torch.nn.functional.cross_entropy itself: arguments, shapes, dtypes and exceptions are its.

    For class indices y, logits x (N, C), weights w and smoothing s, with logp = log_softmax(x, 1),
    row n loses -(1 - s) w[y_n] logp[n, y_n] - s / C sum_c w[c] logp[n, c], or 0 where y_n is
    ignore_index; "mean" divides the sum by that of w[y_n] over the rows that count. For
    probabilities q it loses -sum_c w[c] ((1 - s) q[n, c] + s / C) logp[n, c]; "mean" divides by N.
    A position of (N, C, d1, ...) counts as a row.

    Args:
        input: x, (N, C, d1, ...), (N, C) or (C,).
        target: y int64, (N, d1, ...), (N,) or (); or q, of input's shape and dtype.
        weight: w, (C,), or None.
        size_average: deprecated, see torch.nn.functional.
        ignore_index: a row with this class index counts for nothing.
        reduce: deprecated, see torch.nn.functional.
        reduction: "mean", "sum" or "none".
        label_smoothing: s, from 0 to 1.

    Returns:
        (), or of target's shape without C for "none".

    Raises:
        IndexError: for a class index out of range.
    """
    return F.cross_entropy(
        input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing
    )


def _reduced(loss: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    """ "mean" divides the sum by that of the weights."""
    if reduction == "mean":
        return loss.mean() if weight is None else (loss * weight).sum() / weight.sum()
    loss = loss if weight is None else loss * weight
    return loss.sum() if reduction == "sum" else loss


def mse_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", weight: Tensor | None = None
) -> Tensor:
    """(x - t)^2 of each element: torch.nn.functional.mse_loss.

    Args:
        input: x, of any shape.
        target: t, of input's shape.
        reduction: "mean", "sum" or "none".
        weight: of input's shape, or None; "mean" divides by its sum.

    Returns:
        (), or of input's shape for "none".
    """
    return _reduced((input - target) ** 2, weight, reduction)


def l1_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", weight: Tensor | None = None
) -> Tensor:
    """|x - t| of each element: torch.nn.functional.l1_loss.

    Args:
        input: x, of any shape.
        target: t, of input's shape.
        reduction: "mean", "sum" or "none".
        weight: of input's shape, or None; "mean" divides by its sum.

    Returns:
        (), or of input's shape for "none".
    """
    return _reduced((input - target).abs(), weight, reduction)


def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """d^2 / 2 for |d| < delta, else delta (|d| - delta / 2), with d = x - t.

    torch.nn.functional.huber_loss (Huber 1964). "mean" divides by the number of elements, weighted
    or not.

    Args:
        input: x, of any shape.
        target: t, of input's shape.
        reduction: "mean", "sum" or "none".
        delta: where the square ends and the line begins.
        weight: of input's shape, or None.

    Returns:
        (), or of input's shape for "none".
    """
    d = (input - target).abs()
    loss = torch.where(d < delta, d * d / 2, delta * (d - delta / 2))
    return _reduced(loss if weight is None else loss * weight, None, reduction)


def smooth_l1_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0
) -> Tensor:
    """d^2 / (2 beta) for |d| < beta, else |d| - beta / 2, with d = x - t.

    torch.nn.functional.smooth_l1_loss (Girshick 2015, arXiv:1504.08083).

    Args:
        input: x, of any shape.
        target: t, of input's shape.
        reduction: "mean", "sum" or "none".
        beta: where the square ends and the line begins.

    Returns:
        (), or of input's shape for "none".
    """
    d = (input - target).abs()
    return _reduced(torch.where(d < beta, d * d / (2 * beta), d - beta / 2), None, reduction)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """-w (p t log sigmoid(x) + (1 - t) log sigmoid(-x)), with w = weight and p = pos_weight, or 1.

    torch.nn.functional.binary_cross_entropy_with_logits. "mean" divides by the number of elements,
    weighted or not.

    Args:
        input: x, of any shape.
        target: t, of input's shape.
        reduction: "mean", "sum" or "none".
        weight: w, which broadcasts to input's shape, or None.
        pos_weight: p, which broadcasts to input's shape, or None.

    Returns:
        (), or of input's shape for "none".
    """
    hit = target if pos_weight is None else pos_weight * target
    loss = -(hit * F.logsigmoid(input) + (1 - target) * F.logsigmoid(-input))
    return _reduced(loss if weight is None else loss * weight, None, reduction)
