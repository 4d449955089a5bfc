"""Every op of ours on small tensors, beside PyTorch's own way to the same: what the correctness
checks compare and what the sanitizer watches."""

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import mlp_ext
from mlp_ext import functional, reference

Shape = tuple[int, int, int]  # M, N, K of Y[M, N] = X[M, K] W[N, K]^T

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SMALL: tuple[Shape, ...] = ((7, 33, 17), (64, 64, 64), (130, 200, 300))
# Around tiles of 16 to 128, long sums (split-K), one row, one column, rows of no 16-byte multiple.
GRID: tuple[Shape, ...] = (
    *SMALL,
    *((1, 1, 1), (1, 257, 65), (129, 1, 63), (128, 128, 32), (127, 129, 33), (256, 10, 784)),
    *((64, 64, 4097), (33, 1001, 129), (1031, 5, 3), (512, 512, 1024), (2048, 257, 1030)),
)


@dataclass(frozen=True)
class Op:
    """`ours(*tensors)` and `theirs(*tensors)` give a tensor, or a list of them; `tensors` are on
    the CPU, of the dtype that is checked, and `theirs` in float64 is the truth. `differentiable`:
    gradients of the floating tensors are compared too, with a gradient of the output that is 0
    where `smooth` is False: at a kink rounding alone decides between two derivatives."""

    name: str
    ours: Callable
    theirs: Callable
    tensors: tuple
    differentiable: bool = True
    smooth: Tensor | None = None


def _generator(*key) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))


def _normal(generator, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def linear_ops(shape: Shape, dtype: torch.dtype) -> Iterator[Op]:
    m, n, k = shape
    generator = _generator(shape)
    x = _normal(generator, m, k, scale=1 / math.sqrt(k)).to(dtype)
    w, b = (_normal(generator, *s).to(dtype) for s in ((n, k), (n,)))
    for i, activation in enumerate((None, *functional.ACTIVATIONS)):
        tensors = (x, w, b if i % 2 else None)

        def of(module, activation=activation):
            return lambda x, w, b: module.linear(x, w, b, activation=activation)

        z = reference.linear(*(t if t is None else t.double() for t in tensors))
        smooth = z.abs() > 1e-3 * z.abs().max() if activation in ("relu", "leaky_relu") else None
        yield Op(f"linear {activation}", of(functional), of(reference), tensors, smooth=smooth)
    # Strides of a transposed weight, a slice of a wider input, a gradient through a transposition.
    wide = torch.cat([x, x, x], 1)[:, k : 2 * k]
    turned = w.t().contiguous().t()

    def of_strided(module):
        return lambda x, w, b: module.linear(x, w, b, activation="tanh").t()

    yield Op("linear strided", of_strided(functional), of_strided(reference), (wide, turned, b))


def mlp_ops(shape: Shape, dtype: torch.dtype) -> Iterator[Op]:
    m, n, k = shape
    generator = _generator("mlp", shape)
    sizes = (k, n, 64, n, 10)
    x, tensors = _normal(generator, m, k), []
    for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
        tensors += [_normal(generator, fan_out, fan_in, scale=1 / math.sqrt(fan_in))]
        tensors += [_normal(generator, fan_out, scale=0.25)]

    def of(module, activation):
        return lambda x, *p: module.mlp(x, p[::2], p[1::2], activation=activation)

    # No kinks: a hidden unit at 0 to within rounding has one of two derivatives.
    for activation in ("tanh", "gelu"):
        rounded = tuple(t.to(dtype) for t in (x, *tensors))
        yield Op(
            f"mlp {activation}", of(functional, activation), of(reference, activation), rounded
        )


def loss_ops(shape: Shape, dtype: torch.dtype) -> Iterator[Op]:
    m, n, _ = shape
    generator = _generator("loss", shape)
    logits = _normal(generator, m, n, scale=3).to(dtype)
    labels = torch.randint(n, (m,), generator=generator)
    labels[0] = -100
    weight = torch.rand(n, generator=generator, dtype=torch.float64)
    # Drawn in the dtype, so that the float64 reference sees the very same target.
    target = torch.rand(m, n, generator=generator, dtype=torch.float64).to(dtype)

    def of(module, name, **options):
        return lambda *tensors: getattr(module, name)(*tensors, **options)

    def of_fixed_target(loss):
        return lambda x, y: loss(x, y.detach())

    if m > 1:  # otherwise the only row is ignored, and the loss 0 / 0
        yield Op(
            "cross_entropy",
            *(of(module, "cross_entropy", label_smoothing=0.1) for module in (functional, F)),
            (logits, labels),
        )
        weighted = [
            lambda x, y, w, f=module.cross_entropy: f(x, y, w.detach(), reduction="sum")
            for module in (functional, F)
        ]
        yield Op("cross_entropy weighted", *weighted, (logits, labels, weight.to(dtype)), False)
    for name in ("binary_cross_entropy_with_logits", "mse_loss", "smooth_l1_loss", "huber_loss"):
        fixed = [of_fixed_target(getattr(module, name)) for module in (functional, F)]
        yield Op(name, *fixed, (logits, target))


OPTIMIZERS: dict[str, dict] = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    "Adam": {"lr": 0.01, "amsgrad": True},
    "AdamW": {"lr": 0.01, "weight_decay": 0.1},
    "Adagrad": {"lr": 0.05, "lr_decay": 0.01},
    "RMSprop": {"lr": 0.01, "momentum": 0.9, "centered": True},
    "NAdam": {"lr": 0.01},
    "RAdam": {"lr": 0.01, "betas": (0.8, 0.99)},
    "Adamax": {"lr": 0.01},
}


def optimizer_ops(shape: Shape, dtype: torch.dtype, steps: int = 5) -> Iterator[Op]:
    """The parameters after some steps. Not in 16 bits, where rounding decides."""
    if dtype.itemsize < 4:
        return
    m, n, k = shape
    generator = _generator("optimizer", shape)
    shapes = ((n, k), (n,), (1,), (m, n))
    values = [_normal(generator, *s).to(dtype) for s in shapes]
    # Of one size, because Adam's first steps are the signs of gradients, however small.
    grads = [_normal(generator, *s).sign().to(dtype) * (0.5 + i) for i, s in enumerate(shapes)]

    def run(module, name, **options):
        def after(*tensors):
            parameters = [torch.nn.Parameter(t.detach().clone()) for t in tensors[:4]]
            optimizer = getattr(module, name)(parameters, **OPTIMIZERS[name], **options)
            for step in range(steps):
                for parameter, grad in zip(parameters, tensors[4:], strict=True):
                    parameter.grad = grad * (1 + step)
                optimizer.step()
            return [p.detach() for p in parameters]

        return after

    for name in OPTIMIZERS:
        pair = run(mlp_ext.optim, name), run(torch.optim, name, foreach=False)
        yield Op(name, *pair, (*values, *grads), differentiable=False)


def clip_ops(shape: Shape, dtype: torch.dtype) -> Iterator[Op]:
    if dtype.itemsize < 4:
        return
    generator = _generator("clip", shape)
    grads = tuple(_normal(generator, *s).to(dtype) for s in (shape[:2], shape[1:], shape[:1]))

    def of(function):
        def clipped(*tensors):
            parameters = [torch.nn.Parameter(torch.zeros_like(t)) for t in tensors]
            for parameter, grad in zip(parameters, tensors, strict=True):
                parameter.grad = grad.detach().clone()
            return [function(parameters, 0.5), *(p.grad for p in parameters)]

        return clipped

    pair = of(mlp_ext.nn.utils.clip_grad_norm_), of(torch.nn.utils.clip_grad_norm_)
    yield Op("clip_grad_norm_", *pair, grads, differentiable=False)


def ops(shape: Shape, dtype: torch.dtype) -> Iterator[Op]:
    for family in (linear_ops, mlp_ops, loss_ops, optimizer_ops, clip_ops):
        yield from family(shape, dtype)
