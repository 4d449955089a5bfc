"""What one call costs by the way it is registered: linear + ReLU at 2 x 2 -> 30, where the
arithmetic is nothing. The kernels are the same in every row; only the road to them differs."""

from collections.abc import Callable, Iterator

import torch

import mlp_ext

from .bench_linear import plain_linear_relu
from .calls import forward_backward, randn
from .harness import BASELINE, OURS, OWN, Case, Competitor

RELU = mlp_ext.functional.activation_code("relu")
ops = torch.ops.mlp_ext


class PythonFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        output = ops._mlp_forward(x, [weight], [bias], [RELU])[0]
        ctx.save_for_backward(x, weight, output)
        return output

    @staticmethod
    def backward(ctx, grad):
        x, weight, output = ctx.saved_tensors
        return tuple(ops._mlp_backward(grad, x, [weight], [output], [RELU], [0, 1, 2]))


@torch.library.custom_op("mlp_ext_bench::linear_relu", mutates_args=())
def registered(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return ops._mlp_forward(x, [weight], [bias], [RELU])[0]


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], inputs[1], output)


registered.register_autograd(PythonFunction.backward, setup_context=_setup_context)


def roads() -> dict[str, Callable]:
    """Name -> function of (x, weight, bias)."""
    compiled = mlp_ext._load._C
    return {
        "pybind11 -> C++ node": lambda x, w, b: compiled.linear(x, w, b, RELU),
        "functional.linear_relu": mlp_ext.functional.linear_relu,
        "torch.ops -> C++ node": lambda x, w, b: ops.mlp(x, [w], [b], [RELU]),
        "autograd.Function in Python": PythonFunction.apply,
        "torch.library.custom_op": registered,
        "F.relu(F.linear)": plain_linear_relu,
    }


def cases(full: bool) -> Iterator[Case]:
    *inputs, grad = randn((2, 2), (30, 2), (30,), (2, 30))
    roles = {"functional.linear_relu": OURS, "F.relu(F.linear)": BASELINE}

    def competitors(make):
        return {
            name: Competitor(make(function), roles.get(name, OWN))
            for name, function in roads().items()
        }

    # With autograd recording, unlike calls.forward: that is where the roads differ.
    def recorded(function):
        leaves = [t.clone().requires_grad_() for t in inputs]
        return lambda: lambda: function(*leaves)

    yield Case("registration", "forward 2 x 2 -> 30", competitors(recorded))
    yield Case(
        "registration",
        "forward+backward 2 x 2 -> 30",
        competitors(lambda function: forward_backward(function, inputs, grad=grad)),
    )
