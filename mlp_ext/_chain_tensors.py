"""Which parameters and buffers of a layer mlp_ext.TrainStep can run, and the words of a refusal."""

import torch
from torch import nn


def refusal(path: str, reason: str) -> ValueError:
    return ValueError(f"TrainStep cannot run {f'{path!r}' if path else 'the model'}: {reason}")


def check_norm(norm: nn.BatchNorm1d | nn.LayerNorm, path: str) -> None:
    if isinstance(norm, nn.LayerNorm) and len(norm.normalized_shape) != 1:
        shape = norm.normalized_shape
        raise refusal(path, f"LayerNorm over {len(shape)} dimensions, {shape}; one is supported")
    check_parameters(norm, path)
    for name in ("running_mean", "running_var"):
        buffer = norm._buffers.get(name)
        if buffer is not None:
            _check_tensor(buffer, name, path)


def check_parameters(module: nn.Module, path: str) -> None:
    for name in ("weight", "bias"):
        if name not in module._parameters:
            raise refusal(path, f"its {name} is computed (parametrization, weight_norm, pruning)")
        parameter = module._parameters[name]
        if parameter is None:
            continue
        _check_tensor(parameter, name, path)
        if type(parameter) is not nn.Parameter:
            raise refusal(path, f"its {name} is a {type(parameter).__name__}, no nn.Parameter")
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise refusal(path, f"a hook is registered on its {name}")


def _check_tensor(tensor: torch.Tensor, name: str, path: str) -> None:
    on_device = tensor.device.type in ("cpu", "cuda")
    if tensor.dtype not in (torch.float32, torch.float64) or not on_device:
        what = f"its {name} is {tensor.dtype} on {tensor.device}"
        raise refusal(path, f"{what}; float32 and float64 on the CPU and on CUDA are supported")
    if not tensor.is_contiguous():
        raise refusal(path, f"its {name} is not contiguous")
    if tensor.numel() == 0:
        raise refusal(path, f"its {name} has no elements")
