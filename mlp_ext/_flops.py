"""Floating-point operations of torch.ops.mlp_ext, for torch.utils.flop_counter.

The counts are those of torch.nn.functional.linear, layer by layer: activations, biases and losses
count for nothing there, and so they do here.
"""

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import register_flop_formula

_ops = torch.ops.mlp_ext


def _products(input: Sequence[int], weights: Sequence[Sequence[int]]) -> list[int]:
    """Of each layer: a product of its input and its weight, or of two other of its matrices."""
    rows = 1
    for size in input[:-1]:
        rows *= size
    return [2 * rows * weight[0] * weight[1] for weight in weights]


@register_flop_formula([_ops.mlp, _ops._mlp_forward])
def _forward(input, weights, biases, activations, out_shape=None) -> int:
    return sum(_products(input, weights))


@register_flop_formula(_ops._mlp_backward)
def _backward(grad, input, weights, saved, activations, wanted, out_shape=None) -> int:
    products, layers = _products(input, weights), len(weights)
    # The gradient comes down to the lowest layer that has one to give.
    lowest = min((0 if i == 0 else (i - 1) % layers for i in wanted), default=layers)
    of_weights = sum(products[i - 1] for i in wanted if 1 <= i <= layers)
    of_inputs = sum(products[lowest + 1 :]) + (products[0] if 0 in wanted else 0)
    return of_weights + of_inputs
