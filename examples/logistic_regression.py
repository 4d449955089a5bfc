"""Logistic regression with one neuron: the gradients by hand, by PyTorch and by mlp_ext.

    python examples/logistic_regression.py

    z = w1 x + b        a = sigmoid(z)        L = -(y log a + (1 - y) log(1 - a))

By the chain rule dL/dz = a - y, so dL/dw1 = (a - y) x and dL/db = a - y.
"""

import math

import torch
import torch.nn.functional as F
from torch.autograd import grad

import mlp_ext

X, Y, W1, B = 1.1, 1.0, 2.2, 0.0


def by_hand() -> tuple[float, float]:
    a = 1 / (1 + math.exp(-(W1 * X + B)))
    return (a - Y) * X, a - Y


def parameters() -> tuple[torch.Tensor, torch.Tensor]:
    """w1 of shape (1, 1), that is (out_features, in_features), and b of shape (1,)."""
    return torch.tensor([[W1]], requires_grad=True), torch.tensor([B], requires_grad=True)


def plain_forward(w1: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a = torch.sigmoid(F.linear(torch.tensor([[X]]), w1, b))
    return F.binary_cross_entropy(a, torch.tensor([[Y]]))


def fused_forward(w1: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a = mlp_ext.functional.linear(torch.tensor([[X]]), w1, b, activation="sigmoid")
    return F.binary_cross_entropy(a, torch.tensor([[Y]]))


def by_grad(forward) -> tuple[float, float]:
    w1, b = parameters()
    grad_w1, grad_b = grad(forward(w1, b), (w1, b))
    return grad_w1.item(), grad_b.item()


def by_backward(forward) -> tuple[float, float]:
    w1, b = parameters()
    forward(w1, b).backward()
    return w1.grad.item(), b.grad.item()


def main() -> None:
    rows = {
        "by hand": by_hand(),
        "PyTorch, autograd.grad": by_grad(plain_forward),
        "PyTorch, backward()": by_backward(plain_forward),
        "mlp_ext, autograd.grad": by_grad(fused_forward),
        "mlp_ext, backward()": by_backward(fused_forward),
    }
    print(f"{'':24}{'dL/dw1':>10}{'dL/db':>10}")
    for name, (grad_w1, grad_b) in rows.items():
        print(f"{name:24}{grad_w1:10.4f}{grad_b:10.4f}")


if __name__ == "__main__":
    main()
