"""The update rules of mlp_ext.optim in a few lines of plain PyTorch each: see reference.py."""

import torch
from torch import Tensor


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

    All tensors have param's shape and dtype; param, exp_avg, exp_avg_sq and max_exp_avg_sq (given:
    amsgrad) change in place. Options are torch.optim.Adam's; order of operations: its
    foreach=False, fused=False.
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

    All tensors have param's shape and dtype. Options are torch.optim.SGD's.

    Returns:
        The momentum buffer for the next step, a copy of the gradient on the first (pass None), then
        the buffer given, changed in place; None where momentum is 0.
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
    """Step number `step` (from 1) of torch.optim.Adagrad(foreach=False) (Duchi et al. 2011).

    All tensors have param's shape and dtype; param and sum change in place. Options are
    torch.optim.Adagrad's.
    """
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
    """One step of torch.optim.RMSprop(foreach=False) (Graves 2013, arXiv:1308.0850).

    All tensors have param's shape and dtype; all but grad change in place. grad_avg is given where
    the rule is centered, momentum_buffer where momentum is above 0. Options are
    torch.optim.RMSprop's.
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
    """Step number `step` (from 1) of torch.optim.NAdam(foreach=False) (Dozat 2016).

    All tensors have param's shape and dtype, but for mu_product (), which is that of mu over the
    steps before; all but grad change in place. Options are torch.optim.NAdam's.
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
    """Step number `step` (from 1) of torch.optim.RAdam(foreach=False) (arXiv:1908.03265).

    All tensors have param's shape and dtype; all but grad change in place. Options are
    torch.optim.RAdam's.
    """
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
    """Step number `step` (from 1) of torch.optim.Adamax(foreach=False) (arXiv:1412.6980).

    All tensors have param's shape and dtype; all but grad change in place. Options are
    torch.optim.Adamax's.
    """
    grad = _decayed(param, grad, lr, weight_decay, False, maximize)
    exp_avg.lerp_(grad, 1 - betas[0])
    torch.maximum(exp_inf.mul_(betas[1]), grad.abs() + eps, out=exp_inf)
    param.addcdiv_(exp_avg, exp_inf, value=-lr / (1 - betas[0] ** step))
