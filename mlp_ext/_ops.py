"""Fake kernels of torch.ops.mlp_ext, for torch.compile, torch.export and meta tensors.

They give the shapes and dtypes of each op's results; the ops themselves are registered in
csrc/bindings/registration.cpp.
"""

import torch
from torch import Tensor

from ._load import _C

ACTIVATION_CODES: dict[str, int] = {name: code for code, name in enumerate(_C.ACTIVATIONS)}
LOSS_CODES: dict[str, int] = {name: code for code, name in enumerate(_C.LOSSES)}

# Those whose derivative needs the pre-activation, which forward then saves (activation_kind.h).
_SAVES_INPUT = {code for code, saves in enumerate(_C.ACTIVATION_SAVES_INPUT) if saves}


@torch.library.register_fake("mlp_ext::mlp")
def _mlp(input: Tensor, weights: list[Tensor], biases, activations) -> Tensor:
    return input.new_empty((*input.shape[:-1], weights[-1].shape[0]))


@torch.library.register_fake("mlp_ext::_mlp_forward")
def _mlp_forward(input: Tensor, weights: list[Tensor], biases, activations) -> list[Tensor]:
    rows = input.numel() // input.shape[-1]
    outputs = [_mlp(input, weights, biases, activations)]
    for layer, (weight, code) in enumerate(zip(weights, activations, strict=True)):
        shape = (rows, weight.shape[0])
        if layer + 1 < len(weights):
            outputs.append(input.new_empty(shape))
        if code in _SAVES_INPUT:
            outputs.append(input.new_empty(shape))
    return outputs


@torch.library.register_fake("mlp_ext::_mlp_backward")
def _mlp_backward(
    grad: Tensor, input: Tensor, weights: list[Tensor], saved, activations, wanted: list[int]
) -> list[Tensor]:
    shapes = [input.shape, *(w.shape for w in weights), *(w.shape[:1] for w in weights)]
    return [input.new_empty(shapes[i]) for i in wanted]


# The losses are contiguous, and so are the gradients, but those of logits whose classes are
# neighbours (channels_last) lie as the logits do. Gradients of 16-bit inputs are float32. Shapes
# that do not fit are refused by the op.


def _contiguous(t: Tensor) -> Tensor:
    return torch.empty_like(t, memory_format=torch.contiguous_format)


def _gradient(t: Tensor) -> Tensor:
    dtype = torch.float64 if t.dtype == torch.float64 else torch.float32
    return torch.empty_like(t, dtype=dtype, memory_format=torch.contiguous_format)


@torch.library.register_fake("mlp_ext::cross_entropy")
def _cross_entropy(
    input: Tensor, target: Tensor, weight, reduction: int, ignore_index: int, label_smoothing: float
) -> Tensor:
    each = (*input.shape[:1], *input.shape[2:]) if reduction == 0 and input.dim() > 1 else ()
    is_probability = target.is_floating_point()
    dtype = torch.result_type(input, target) if is_probability else input.dtype
    return input.new_empty(each, dtype=dtype)


@torch.library.register_fake("mlp_ext::_cross_entropy_forward")
def _cross_entropy_forward(
    input: Tensor, target: Tensor, weight, reduction: int, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    loss = _cross_entropy(input, target, weight, reduction, ignore_index, label_smoothing)
    if input.dim() > 2 and not input.is_contiguous() and input.movedim(1, -1).is_contiguous():
        return loss, _gradient(input.movedim(1, -1)).movedim(-1, 1)
    return loss, _gradient(input)


@torch.library.register_fake("mlp_ext::elementwise_loss")
def _elementwise_loss(
    input: Tensor, target: Tensor, weight, pos_weight, kind: int, reduction: int, parameter: float
) -> Tensor:
    loss = input + target  # the dtype and shape of any function of them
    for factor in (weight, pos_weight):
        loss = loss if factor is None else loss * factor
    return _contiguous(loss if reduction == 0 else loss.sum())


@torch.library.register_fake("mlp_ext::_elementwise_loss_forward")
def _elementwise_loss_forward(
    input: Tensor, target: Tensor, weight, pos_weight, kind: int, reduction: int, parameter: float
) -> tuple[Tensor, Tensor]:
    loss = _elementwise_loss(input, target, weight, pos_weight, kind, reduction, parameter)
    return loss, _gradient(input)
