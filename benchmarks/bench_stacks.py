"""mlp_ext.functional.mlp, a stack as one node, against the plain chain of F.linear and F.relu."""

from collections.abc import Iterator

import torch.nn.functional as F

import mlp_ext

from .calls import forward, forward_backward, randn
from .harness import Case, against
from .models import NETS, label

SHORT = ("seed", "rl", "mnist")


def plain_stack(x, *parameters):
    """`parameters`: weight, bias, weight, bias, ..."""
    weights, biases = parameters[::2], parameters[1::2]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = F.relu(F.linear(x, weight, bias))
    return F.linear(x, weights[-1], biases[-1])


def fused_stack(x, *parameters):
    return mlp_ext.functional.mlp(x, parameters[::2], parameters[1::2])


def cases(full: bool) -> Iterator[Case]:
    functions = (plain_stack, fused_stack)
    for name in NETS if full else SHORT:
        sizes, batch = NETS[name]
        pairs = list(zip(sizes[:-1], sizes[1:], strict=True))
        shapes = [shape for k, n in pairs for shape in ((n, k), (n,))]
        *inputs, grad = randn((batch, sizes[0]), *shapes, (batch, sizes[-1]))
        # 1 / sqrt(K) keeps activations, and so the timings of their sums, free of overflow.
        inputs = [t / t.shape[-1] ** 0.5 if t.dim() == 2 else t for t in inputs]
        flops = sum(2.0 * batch * k * n for k, n in pairs)
        competitors = {
            "forward": against(*(forward(f, *inputs) for f in functions)),
            "forward+backward": against(
                *(forward_backward(f, inputs, grad=grad) for f in functions)
            ),
        }
        for (mode, pair), products in zip(competitors.items(), (1, 3), strict=True):
            yield Case(
                "stacks", f"{mode} {label(name)}", pair, flops=flops * products, ceiling="fma"
            )
