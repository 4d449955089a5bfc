"""Fused layers and losses as functions, with the signatures of torch.nn.functional.

Each call is one autograd node. Tensors are float32, float64, bfloat16 or float16, on the CPU or,
where that half is built, on CUDA. What the kernels do not take (other dtypes and devices; sparse
and nested tensors; empty tensors; a weight or bias of unusual shape) runs as PyTorch's own
operators, with PyTorch's results and errors. The same holds inside torch.func transforms, under
forward-mode AD, for tensors of classes with a `__torch_dispatch__` of their own, for layers in a
torch.export, and for the backward pass of a backward pass. A tensor of a class with a
`__torch_function__`, and a TorchFunctionMode, see PyTorch's functions: those that the call stands
for, such as torch.nn.functional.linear and relu.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from . import reference
from ._arguments import OPTIONAL, TENSOR, type_error
from ._elementwise_losses import (
    binary_cross_entropy_with_logits,
    huber_loss,
    l1_loss,
    mse_loss,
    smooth_l1_loss,
)
from ._load import _C
from ._losses import cross_entropy
from ._ops import ACTIVATION_CODES
from ._overrides import are_overridden

__all__ = [
    "ACTIVATIONS",
    "activation_code",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "huber_loss",
    "l1_loss",
    "linear",
    "linear_relu",
    "mlp",
    "mse_loss",
    "smooth_l1_loss",
]

ACTIVATIONS: tuple[str, ...] = tuple(name for name in ACTIVATION_CODES if name != "none")
"""Names of the activations that `linear` and `mlp` take, in the order of their codes."""


def activation_code(name: str | None) -> int:
    """The integer by which the ops know an activation.

    Args:
        name: None for no activation, or one of `ACTIVATIONS`.

    Returns:
        0 for None, otherwise 1 for the first of `ACTIVATIONS`, and so on.

    Raises:
        ValueError: for a name that is none of these.
    """
    if name is None:
        return 0
    code = ACTIVATION_CODES.get(name) if isinstance(name, str) else None
    if not code:
        names = ", ".join(repr(known) for known in (None, *ACTIVATIONS))
        raise ValueError(f"unknown activation {name!r}; expected one of {names}")
    return code


def _by_torch(
    input: Tensor, weights: list[Tensor], biases: list[Tensor | None], codes: list[int]
) -> Tensor:
    """A stack by PyTorch's own functions, for those who know no others.

    So in a torch.export: the program is loaded without this package, and converted by tools (ONNX,
    ...). So for a tensor of a class, or in a mode, with a `__torch_function__`.
    """
    for weight, bias, code in zip(weights, biases, codes, strict=True):
        name = ACTIVATIONS[code - 1] if code else None
        input = reference.linear(input, weight, bias, activation=name)
    return input


def _in_graph(
    input: Tensor, weights: list[Tensor], biases: list[Tensor | None], codes: list[int]
) -> Tensor:
    """A stack while a graph is recorded: our op, but for torch.export PyTorch's operators."""
    if torch.compiler.is_exporting():
        return _by_torch(input, weights, biases, codes)
    return torch.ops.mlp_ext.mlp(input, weights, biases, codes)


def linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None
) -> Tensor:
    """activation(input @ weight.T + bias) in one pass over the output.

    The same as torch.nn.functional.linear followed by the activation. Saved for backward: input,
    weight, and the output for "relu", "tanh" and "sigmoid", the pre-activation for the others.

    Args:
        input: (..., K).
        weight: (N, K), of input's dtype and device.
        bias: (N,), of input's dtype and device, or None.
        activation: None or one of `ACTIVATIONS`, at PyTorch's default hyperparameters: "gelu" is
            the erf form and "gelu_tanh" the approximation, leaky_relu has slope 0.01, elu alpha 1,
            softplus beta 1 and threshold 20.

    Returns:
        (..., N), of input's dtype.

    Raises:
        ValueError: for an unknown activation.
        RuntimeError: as torch.nn.functional.linear, for shapes or dtypes that do not fit together.
        TypeError: for an argument that is no tensor.
    """
    code = activation_code(activation)
    if has_torch_function((input, weight, bias)) and are_overridden(input, weight, bias):
        return _by_torch(input, [weight], [bias], [code])
    if torch.compiler.is_compiling():
        return _in_graph(input, [weight], [bias], [code])
    try:
        return _C.linear(input, weight, bias, code)
    except TypeError as error:
        raise type_error(
            error, "linear", input=(input, TENSOR), weight=(weight, TENSOR), bias=(bias, OPTIONAL)
        ) from None


def linear_relu(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """relu(input @ weight.T + bias): `linear` with activation="relu".

    Args:
        input: (..., K).
        weight: (N, K), of input's dtype and device.
        bias: (N,), of input's dtype and device, or None.

    Returns:
        (..., N), of input's dtype.

    Raises:
        RuntimeError: as torch.nn.functional.linear, for shapes or dtypes that do not fit together.
        TypeError: for an argument that is no tensor.
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
    """A whole stack of linear layers as one autograd node.

    The same as `linear` in a loop over the layers.

    Args:
        input: (..., K).
        weights: weights[l] is (N_l, K_l), K_0 = K and K_l = N_{l-1}; of input's dtype and
            device.
        biases: biases[l] is (N_l,) or None; None for no biases at all.
        activation: follows every layer but the last; None or one of `ACTIVATIONS`, as in `linear`.
        final_activation: follows the last layer, likewise.

    Returns:
        (..., N_last), of input's dtype.

    Raises:
        ValueError: for an unknown activation, an empty stack, lists of different lengths.
        RuntimeError: as torch.nn.functional.linear, for shapes or dtypes that do not fit together.
        TypeError: for a tensor in the place of a list, and for an entry that is no tensor.
    """
    hidden, final = activation_code(activation), activation_code(final_activation)
    if isinstance(weights, Tensor) or isinstance(biases, Tensor):
        raise TypeError("mlp takes sequences of weights and biases, got a single Tensor")
    weights = list(weights)
    if not weights:
        raise ValueError("mlp needs at least one weight, got none")
    biases = [None] * len(weights) if biases is None else list(biases)
    if len(biases) != len(weights):
        raise ValueError(f"mlp got {len(weights)} weights but {len(biases)} biases")
    return _stack(input, weights, biases, [hidden] * (len(weights) - 1) + [final])


def _stack(
    input: Tensor, weights: list[Tensor], biases: list[Tensor | None], codes: list[int]
) -> Tensor:
    """`mlp` with one activation code for each layer."""
    tensors = (input, *weights, *biases)
    if has_torch_function(tensors) and are_overridden(*tensors):
        return _by_torch(input, weights, biases, codes)
    if torch.compiler.is_compiling():
        return _in_graph(input, weights, biases, codes)
    try:
        return _C.mlp(input, weights, biases, codes)
    except TypeError as error:
        raise type_error(
            error,
            "mlp",
            input=(input, TENSOR),
            **{f"weights[{i}]": (weight, TENSOR) for i, weight in enumerate(weights)},
            **{f"biases[{i}]": (bias, OPTIONAL) for i, bias in enumerate(biases)},
        ) from None
