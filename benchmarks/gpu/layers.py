"""Linear + ReLU, and whole stacks of them in one op: forward, and forward + backward.

torch.compile is in its default mode, recorded in a CUDA graph like everybody here, so that the
generated kernels are compared and not the launches. Where mlp_ext has the choice between its own
kernel and cuBLASLt, both compete: which one it should have taken is what
csrc/cuda/cublaslt/lt_heuristics.h has estimated. `tiles` does so for the tiles of our own.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F

from mlp_ext import functional

from .. import calls
from .settings import PRECISIONS, TILES, under
from .timing import Timed, compare

# M, N, K; the first are what most predictions are of.
SHAPES = (
    (4096, 4096, 4096), (1024, 1024, 1024), (512, 512, 784), (2048, 2048, 2048), (256, 256, 256),
    (4096, 1024, 1024), (64, 64, 64), (4096, 64, 64),
)  # fmt: skip
TILE_SHAPES = ((1024, 1024, 1024), (256, 256, 256), (8192, 10, 512), (16, 4096, 1024))
COMPILED = (1024, 1024, 1024)  # every kernel of torch.compile takes seconds
LEAST_LIBRARY_WORK = 1 << 30  # as in lt_heuristics.h
WIDTHS = (64, 128)
LAYERS, ROWS = 4, 65536


def plain(x, weight, bias):
    return F.relu(F.linear(x, weight, bias))


def epilogue(x, weight, bias):
    """By cuBLASLt's epilogue, where PyTorch uses it; it has no derivative."""
    return torch._addmm_activation(bias, x, weight.t(), use_gelu=False)


def stack(linear: Callable, linear_relu: Callable) -> Callable:
    def function(x, *weights_and_biases):
        pairs = list(zip(weights_and_biases[::2], weights_and_biases[1::2], strict=True))
        for weight, bias in pairs[:-1]:
            x = linear_relu(x, weight, bias)
        return linear(x, *pairs[-1])

    return function


def own_stack(x, *weights_and_biases):
    return functional.mlp(x, weights_and_biases[::2], weights_and_biases[1::2])


def _inputs(device, dtype, shapes, i: int) -> list[torch.Tensor]:
    generator = torch.Generator(device.torch).manual_seed(i)
    drawn = (torch.randn(s, generator=generator, device=device.torch) for s in shapes)
    return [t.div_(s[-1] ** 0.5).to(dtype) for t, s in zip(drawn, shapes, strict=True)]


def _case(device, suite, name, precision, functions, shapes, flops, backward, paths) -> Timed:
    """functions: name -> (function, what MLP_EXT_FORCE could be). shapes: of the function's
    tensors, and last of the gradient of its output."""
    dtype, setting = PRECISIONS[precision]
    sets = device.sets(dtype.itemsize * sum(torch.Size(shape).numel() for shape in shapes))

    def make(function, force, i: int):
        *tensors, dy = _inputs(device, dtype, shapes, i)
        if backward:
            work = calls.forward_backward(function, tensors, grad=dy)()
        else:
            work = calls.forward(function, *tensors)()
        return under(setting, work, force)

    def maker(name, function, force=""):
        made = device.compiled(function) if name == "torch.compile" else function
        return partial(make, made, force)

    makes = {name: partial(maker, name, *f) for name, f in functions.items()}
    mode, times = ("forward+backward", 3) if backward else ("forward", 1)
    named = {name: f"{path} {mode}" for name, path in paths.items()}
    return compare(device, suite, f"{name} {mode}", sets, makes, flops=flops * times, paths=named)


def linear_case(device, shape, precision, backward, routes=(), compiled=False) -> Timed:
    """routes: what MLP_EXT_FORCE could be, each another form of ours and a path of its own."""
    m, n, k = shape
    ours = functional.linear_relu
    functions = {"torch": (plain,)}
    functions |= {"torch.compile": (plain,)} if compiled else {}
    functions |= {} if backward else {"cuBLASLt epilogue": (epilogue,)}
    functions |= {f"mlp_ext {route}": (ours, route) for route in routes}
    functions |= {"mlp_ext": (ours,)}
    names = {"own": "our products", "library": "cuBLASLt's products"}
    paths = {f"mlp_ext {r}": f"{names.get(r, f'tile {r}')} {precision}" for r in routes}
    paths = paths or {"mlp_ext": f"our products {precision}"}
    name = f"{'tiles' if len(routes) > 2 else 'linear_relu'} {precision} {m}x{n}x{k}"
    tensors = [(m, k), (n, k), (n,), (m, n)]
    flops = 2.0 * m * n * k
    return _case(device, "layers", name, precision, functions, tensors, flops, backward, paths)


def cases(device, shapes=SHAPES) -> Iterator[Timed]:
    for shape in ((5, 6, 7),) if device.tiny else shapes:
        for precision in PRECISIONS:
            m, n, k = shape
            has_choice = precision != "float32" and 2 * m * n * k >= LEAST_LIBRARY_WORK
            for backward in (False, True):
                routes = ("own", "library") if has_choice else ()
                compiled = shape == COMPILED and not backward
                yield linear_case(device, shape, precision, backward, routes, compiled)


def tiles(device) -> Iterator[Timed]:
    for shape in ((5, 6, 7),) if device.tiny else TILE_SHAPES:
        for precision in ("float32", "bfloat16"):
            # K in parts of at least 256, as many as may fill the device.
            blocks = -(-shape[0] // 64) * -(-shape[1] // 64)
            split = max(1, min(132 // blocks, shape[2] // 256))
            routes = [f"{tile},{split}" for tile in TILES]
            yield linear_case(device, shape, precision, False, routes)


def stacks(device, precision: str = "float32") -> Iterator[Timed]:
    """Small widths and many rows: what a stack that stays in registers and shared memory is for."""
    for width in (4,) if device.tiny else WIDTHS:
        rows = 6 if device.tiny else ROWS
        shapes = [(rows, width), *[(width, width), (width,)] * LAYERS, (rows, width)]
        by_torch = stack(F.linear, plain)
        functions = {
            "torch": (by_torch,),
            "torch.compile": (by_torch,),
            "mlp_ext by layers": (stack(functional.linear, functional.linear_relu),),
            "mlp_ext": (own_stack,),
        }
        paths = {"mlp_ext by layers": "a stack by layers", "mlp_ext": "fused_mlp"}
        name = f"mlp {width} x {LAYERS} layers / {rows}"
        flops = 2.0 * rows * width * width * LAYERS
        for backward in (False, True):
            yield _case(
                device, "stacks", name, precision, functions, shapes, flops, backward, paths
            )
