"""Linear + ReLU, and whole stacks of them in one op: forward, and forward + backward.

torch.compile is in its default mode, recorded in a CUDA graph like everybody here, so that the
generated kernels are compared and not the launches. "max-autotune-no-cudagraphs" tries dozens of
kernels for minutes a shape; it competes in one shape of each precision, the last to run.

Where mlp_ext has the choice between its own kernel and cuBLASLt, both compete: which one it should
have taken is what csrc/cuda/cublaslt/lt_heuristics.h has estimated.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F

import mlp_ext

from .. import calls
from ..harness import BASELINE, OURS, OWN, Case, Competitor
from .cases import GpuCase, recorded
from .precision import PRECISIONS, under
from .routes import ROUTES, forced

# M, N, K; the first are what most predictions are of.
SHAPES = (
    (4096, 4096, 4096), (1024, 1024, 1024), (4096, 1024, 1024), (256, 256, 256), (64, 64, 64),
    (512, 512, 784), (2048, 2048, 2048), (4096, 64, 64),
)  # fmt: skip
AUTOTUNED = ((1024, 1024, 1024),)
LEAST_LIBRARY_WORK = 1 << 30  # as in lt_heuristics.h
WIDTHS = (64, 128)
LAYERS, ROWS = 4, 65536


def plain(x, weight, bias):
    return F.relu(F.linear(x, weight, bias))


def epilogue(x, weight, bias):
    """By cuBLASLt's epilogue, where PyTorch uses it; it has no derivative."""
    return torch._addmm_activation(bias, x, weight.t(), use_gelu=False)


def plain_stack(x, *weights_and_biases):
    pairs = list(zip(weights_and_biases[::2], weights_and_biases[1::2], strict=True))
    for weight, bias in pairs[:-1]:
        x = F.relu(F.linear(x, weight, bias))
    return F.linear(x, *pairs[-1])


def own_stack(x, *weights_and_biases):
    return mlp_ext.functional.mlp(x, weights_and_biases[::2], weights_and_biases[1::2])


def _inputs(device, dtype, i: int, shapes) -> list[torch.Tensor]:
    generator = torch.Generator(device.torch).manual_seed(i)
    return [
        torch.randn(shape, generator=generator, device=device.torch)
        .div_(shape[-1] ** 0.5)
        .to(dtype)
        for shape in shapes
    ]


def _case(
    device,
    suite: str,
    name: str,
    precision: str,
    functions: dict[str, tuple],
    shapes: list[tuple[int, ...]],
    out: tuple[int, int],
    flops: float,
    backward: bool,
) -> GpuCase:
    """functions: (function, role), and for a form of ours what MLP_EXT_FORCE is. shapes: of the
    tensors; the gradient of the output is of shape `out`."""
    dtype, setting = PRECISIONS[precision]
    numbers = sum(torch.Size(shape).numel() for shape in (*shapes, out))
    sets = device.sets(numbers * dtype.itemsize)

    def maker(function, route):
        def make(i: int):
            *tensors, dy = _inputs(device, dtype, i, [*shapes, out])
            if backward:
                work = calls.forward_backward(function, tensors, grad=dy)()
            else:
                work = calls.forward(function, *tensors)()
            return under(setting, forced(route)(work) if route else work)

        return recorded(device, make, sets)

    def lazily(function, route=None):
        # torch.compile compiles when the case runs, under the precision that it is for.
        made = function() if getattr(function, "makes", False) else function
        return maker(made, route)()

    competitors = {
        name: Competitor(lambda f=function, r=route: lazily(f, *r), role)
        for name, (function, role, *route) in functions.items()
    }
    mode = "forward+backward" if backward else "forward"
    work = flops * (3 if backward else 1)
    return GpuCase(Case(suite, f"{name} {mode}", competitors, flops=work), sets)


def _compiling(device, function: Callable, **options) -> Callable[[], Callable]:
    def make():
        return device.compiled(function, **options)

    make.makes = True
    return make


def linear_cases(device, shapes=SHAPES, precisions=tuple(PRECISIONS)) -> Iterator[GpuCase]:
    routes = {name: (mlp_ext.functional.linear_relu, OWN, route) for name, route in ROUTES.items()}

    def case(shape, precision, backward, extra=None):
        m, n, k = shape
        has_choice = precision != "float32 highest" and 2 * m * n * k >= LEAST_LIBRARY_WORK
        functions = {
            "torch": (plain, BASELINE),
            "torch.compile": (_compiling(device, plain), "peer"),
            **({} if backward else {"cuBLASLt epilogue": (epilogue, "peer")}),
            **(extra or {}),
            **(routes if has_choice else {}),
            "mlp_ext": (mlp_ext.functional.linear_relu, OURS),
        }
        name = f"linear_relu {precision} {m}x{n}x{k}" + " autotune" * bool(extra)
        tensors = [(m, k), (n, k), (n,)]
        return _case(
            device, "linear", name, precision, functions, tensors, (m, n), 2.0 * m * n * k, backward
        )

    for shape in shapes:
        for precision in precisions:
            for backward in (False, True):
                yield case(shape, precision, backward)
    autotuned = _compiling(device, plain, mode="max-autotune-no-cudagraphs")
    for shape in AUTOTUNED if shapes is SHAPES else ():
        for precision in precisions:
            extra = {"torch.compile autotuned": (autotuned, "peer")}
            yield replace(case(shape, precision, False, extra), seconds=60.0)


def stack_cases(device, widths=WIDTHS, rows: int = ROWS, precision="float32 highest"):
    """Small widths and many rows: what a stack that stays in registers and shared memory is for."""
    for width in widths:
        tensors = [(rows, width), *[(width, width), (width,)] * LAYERS]
        functions = {
            "torch": (plain_stack, BASELINE),
            "torch.compile": (_compiling(device, plain_stack), "peer"),
            "mlp_ext": (own_stack, OURS),
        }
        name = f"mlp {width} x {LAYERS} layers / {rows}"
        flops = 2.0 * rows * width * width * LAYERS
        for backward in (False, True):
            yield _case(
                device, "stack", name, precision, functions, tensors, (rows, width), flops, backward
            )
