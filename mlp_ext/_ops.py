"""Fake kernels of torch.ops.mlp_ext, for torch.compile, torch.export and meta tensors.

They give the shapes and dtypes of each op's results; the ops themselves are registered in
csrc/bindings/registration.cpp.
"""

import torch
from torch import Tensor

from ._load import _C

ACTIVATION_CODES: dict[str, int] = {name: code for code, name in enumerate(_C.ACTIVATIONS)}

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


def _loss_shape(input: Tensor, reduction: int) -> tuple:
    return tuple(input.shape[:-1]) if reduction == 0 else ()


@torch.library.register_fake("mlp_ext::cross_entropy")
def _cross_entropy(
    input: Tensor, target: Tensor, weight, reduction: int, ignore_index: int, label_smoothing: float
) -> Tensor:
    if input.dim() > 2 or target.is_floating_point():
        return torch.empty_like(
            torch.ops.aten.cross_entropy_loss(
                input, target, weight, reduction, ignore_index, label_smoothing
            )
        )
    return input.new_empty(_loss_shape(input, reduction))


@torch.library.register_fake("mlp_ext::_cross_entropy_forward")
def _cross_entropy_forward(
    input: Tensor, target: Tensor, weight, reduction: int, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    return input.new_empty(_loss_shape(input, reduction)), input.new_empty(input.shape)
