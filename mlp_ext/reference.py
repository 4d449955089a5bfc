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

# Name -> function of one tensor. PyTorch's defaults: negative_slope 0.01, alpha 1, beta 1,
# threshold 20; "gelu" is the erf form, "gelu_tanh" the approximation of arXiv:1606.08415.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "softplus": F.softplus,
}


def activate(input: Tensor, activation: str | None) -> Tensor:
    """`activation` of each element; None is the identity. ValueError for an unknown name."""
    if activation is None:
        return input
    if activation not in ACTIVATIONS:
        names = ", ".join(repr(name) for name in ACTIVATIONS)
        raise ValueError(f"unknown activation {activation!r}; expected one of None, {names}")
    return ACTIVATIONS[activation](input)


def linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None
) -> Tensor:
    """act(input weight^T + bias): input (..., K), weight (N, K), bias (N,) or None -> (..., N)."""
    return activate(F.linear(input, weight, bias), activation)


def linear_relu(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """relu(input weight^T + bias), shapes as in `linear`."""
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

    input (..., sizes[0]), weights[i] (sizes[i+1], sizes[i]), biases[i] (sizes[i+1],) or None,
    or biases None for none at all -> (..., sizes[-1]). ValueError for an empty stack, and where the
    two lists differ in length.
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
    ignore_index; "mean" divides the sum by that of w[y_n] over the rows that count.
    """
    return F.cross_entropy(
        input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing
    )


@torch.no_grad()
def adam_step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    *,
    max_exp_avg_sq: Tensor | None = None,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> None:
    """Step number `step` (from 1) of Adam (arXiv:1412.6980); decoupled: AdamW (arXiv:1711.05101).

    All tensors have param's shape; param, exp_avg, exp_avg_sq and max_exp_avg_sq (given: amsgrad)
    change in place. Order of operations: torch.optim.Adam(foreach=False, fused=False).
    """
    (beta1, beta2), grad = betas, -grad if maximize else grad
    if weight_decay and decoupled_weight_decay:
        param.mul_(1 - lr * weight_decay)
    elif weight_decay:
        grad = grad.add(param, alpha=weight_decay)
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    if max_exp_avg_sq is not None:
        exp_avg_sq = torch.maximum(max_exp_avg_sq, exp_avg_sq, out=max_exp_avg_sq)
    denom = (exp_avg_sq.sqrt() / (1 - beta2**step) ** 0.5).add_(eps)
    param.addcdiv_(exp_avg, denom, value=-lr / (1 - beta1**step))


@torch.no_grad()
def sgd_step(
    param: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None = None,
    *,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> Tensor | None:
    """One step of torch.optim.SGD(foreach=False, fused=False); param changes in place.

    Returns the momentum buffer for the next step: a copy of the gradient on the first (pass None),
    then the buffer given, changed in place; None where momentum is 0.
    """
    grad = -grad if maximize else grad
    grad = grad.add(param, alpha=weight_decay) if weight_decay else grad
    if momentum:
        if momentum_buffer is None:
            momentum_buffer = grad.clone()
        else:
            momentum_buffer.mul_(momentum).add_(grad, alpha=1 - dampening)
        grad = grad.add(momentum_buffer, alpha=momentum) if nesterov else momentum_buffer
    param.add_(grad, alpha=-lr)
    return momentum_buffer if momentum else None


@torch.no_grad()
def adagrad_step(
    param: Tensor,
    grad: Tensor,
    sum: Tensor,
    step: int,
    *,
    lr: float = 1e-2,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    eps: float = 1e-10,
    maximize: bool = False,
) -> None:
    """Step number `step` (from 1) of torch.optim.Adagrad(foreach=False); param, sum in place."""
    grad = -grad if maximize else grad
    grad = grad.add(param, alpha=weight_decay)
    sum.addcmul_(grad, grad)
    param.addcdiv_(grad, sum.sqrt() + eps, value=-lr / (1 + (step - 1) * lr_decay))


@torch.no_grad()
def rmsprop_step(
    param: Tensor,
    grad: Tensor,
    square_avg: Tensor,
    grad_avg: Tensor | None = None,
    momentum_buffer: Tensor | None = None,
    *,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    maximize: bool = False,
) -> None:
    """One step of torch.optim.RMSprop(foreach=False); all but grad change in place.

    grad_avg is given where the rule is centered, momentum_buffer where momentum is above 0.
    """
    grad = -grad if maximize else grad
    grad = grad.add(param, alpha=weight_decay)
    square_avg.mul_(alpha).addcmul_(grad, grad, value=1 - alpha)
    if grad_avg is not None:
        grad_avg.lerp_(grad, 1 - alpha)
        square_avg = square_avg.addcmul(grad_avg, grad_avg, value=-1)
    denom = square_avg.sqrt() + eps
    if momentum_buffer is not None:
        momentum_buffer.mul_(momentum).addcdiv_(grad, denom)
        param.add_(momentum_buffer, alpha=-lr)
    else:
        param.addcdiv_(grad, denom, value=-lr)


def _decayed(
    param: Tensor, grad: Tensor, lr: float, weight_decay: float, decoupled: bool, maximize: bool
) -> Tensor:
    """The gradient with its sign and the L2 penalty; decoupled: it is param that decays."""
    grad = -grad if maximize else grad
    if decoupled:
        param.mul_(1 - lr * weight_decay)
        return grad
    return grad.add(param, alpha=weight_decay)


@torch.no_grad()
def nadam_step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    mu_product: Tensor,
    step: int,
    *,
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum_decay: float = 4e-3,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> None:
    """Step number `step` (from 1) of torch.optim.NAdam(foreach=False).

    mu_product (0-dim) is that of mu over the steps before; all but grad change in place.
    """
    grad = _decayed(param, grad, lr, weight_decay, decoupled_weight_decay, maximize)
    mu, mu_next = (betas[0] * (1 - 0.5 * 0.96 ** (t * momentum_decay)) for t in (step, step + 1))
    product = mu_product.mul_(mu).item()
    exp_avg.lerp_(grad, 1 - betas[0])
    exp_avg_sq.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
    denom = (exp_avg_sq / (1 - betas[1] ** step)).sqrt() + eps
    param.addcdiv_(grad, denom, value=-lr * (1 - mu) / (1 - product))
    param.addcdiv_(exp_avg, denom, value=-lr * mu_next / (1 - product * mu_next))


@torch.no_grad()
def radam_step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> None:
    """Step number `step` (from 1) of torch.optim.RAdam(foreach=False); all but grad in place."""
    (beta1, beta2), most = betas, 2 / (1 - betas[1]) - 1
    grad = _decayed(param, grad, lr, weight_decay, decoupled_weight_decay, maximize)
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    update = exp_avg / (1 - beta1**step) * lr
    length = most - 2 * step * beta2**step / (1 - beta2**step)
    if length > 5:
        update *= (1 - beta2**step) ** 0.5 / (exp_avg_sq.sqrt() + eps)
        update *= ((length - 4) * (length - 2) * most / (most - 4) / (most - 2) / length) ** 0.5
    param.sub_(update)


@torch.no_grad()
def adamax_step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_inf: Tensor,
    step: int,
    *,
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    """Step number `step` (from 1) of torch.optim.Adamax(foreach=False); all but grad in place."""
    grad = _decayed(param, grad, lr, weight_decay, False, maximize)
    exp_avg.lerp_(grad, 1 - betas[0])
    torch.maximum(exp_inf.mul_(betas[1]), grad.abs() + eps, out=exp_inf)
    param.addcdiv_(exp_avg, exp_inf, value=-lr / (1 - betas[0] ** step))
