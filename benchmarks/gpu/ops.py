"""Our functions on small tensors, beside PyTorch's own way to the same: what the correctness checks
compare and what the sanitizer watches. (training_ops.py has what changes parameters.)"""

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mlp_ext import functional, reference

Shape = tuple[int, int, int]  # M, N, K of Y[M, N] = X[M, K] W[N, K]^T

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Op:
    """`ours(*tensors)` and `theirs(*tensors)` give a tensor, or a list of them; `tensors` are on
    the CPU, of the dtype that is checked, and `theirs` in float64 is the truth. `differentiable`:
    gradients of the floating tensors are compared too, with a gradient of the output that is 0
    where `smooth` is False: at a kink rounding alone decides between two derivatives. `records`:
    ours records a CUDA graph."""

    name: str
    ours: Callable
    theirs: Callable
    tensors: tuple
    differentiable: bool = True
    smooth: Tensor | None = None
    records: bool = False

    def tensors_on(self, device: torch.device, dtype: torch.dtype | None = None) -> list:
        """In the dtype, if there is one, those that are floating."""

        def moved(t: Tensor) -> Tensor:
            kind = dtype if dtype and t.is_floating_point() else t.dtype
            # .to() would make a strided tensor dense.
            return torch.empty_strided(t.shape, t.stride(), dtype=kind, device=device).copy_(t)

        return [t if t is None else moved(t) for t in self.tensors]


def generator_of(*key) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))


def normal(generator, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def linear_ops(shape: Shape, dtype: torch.dtype) -> Iterator[Op]:
    m, n, k = shape
    generator = generator_of(shape)
    x = normal(generator, m, k, scale=1 / math.sqrt(k)).to(dtype)
    w, b = (normal(generator, *s).to(dtype) for s in ((n, k), (n,)))

    def pair(activation):
        of = (partial(module.linear, activation=activation) for module in (functional, reference))
        return (lambda x, w, b, f=f: f(x, w, b) for f in of)

    for i, activation in enumerate((None, *functional.ACTIVATIONS)):
        tensors = (x, w, b if i % 2 else None)
        z = reference.linear(*(t if t is None else t.double() for t in tensors))
        smooth = z.abs() > 1e-3 * z.abs().max() if activation in ("relu", "leaky_relu") else None
        yield Op(f"linear {activation}", *pair(activation), tensors, smooth=smooth)
    # Strides of a transposed weight, a slice of a wider input, a gradient through a transposition.
    strided = (torch.cat([x, x, x], 1)[:, k : 2 * k], w.t().contiguous().t(), b)
    turned = (lambda x, w, b, f=f: f(x, w, b).t() for f in pair("tanh"))
    yield Op("linear strided", *turned, strided)


def mlp_ops(shape: Shape, dtype: torch.dtype) -> Iterator[Op]:
    m, n, k = shape
    generator = generator_of("mlp", shape)
    sizes = (k, n, 64, n, 10)
    tensors = [normal(generator, m, k)]
    for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
        tensors += [normal(generator, fan_out, fan_in, scale=1 / math.sqrt(fan_in))]
        tensors += [normal(generator, fan_out, scale=0.25)]
    rounded = tuple(t.to(dtype) for t in tensors)
    # No kinks: a hidden unit at 0 to within rounding has one of two derivatives.
    for activation in ("tanh", "gelu"):
        pair = (
            lambda x, *p, f=module.mlp, a=activation: f(x, p[::2], p[1::2], activation=a)
            for module in (functional, reference)
        )
        yield Op(f"mlp {activation}", *pair, rounded)


def loss_ops(shape: Shape, dtype: torch.dtype) -> Iterator[Op]:
    m, n, _ = shape
    generator = generator_of("loss", shape)
    logits = normal(generator, m, n, scale=3).to(dtype)
    labels = torch.randint(n, (m,), generator=generator)
    labels[0] = -100
    weight = torch.rand(n, generator=generator, dtype=torch.float64).to(dtype)
    # Drawn in the dtype, so that the float64 reference sees the very same target.
    target = torch.rand(m, n, generator=generator, dtype=torch.float64).to(dtype)
    modules = (functional, F)
    if m > 1:  # otherwise the only row is ignored, and the loss 0 / 0
        pair = (lambda x, y, f=f.cross_entropy: f(x, y, label_smoothing=0.1) for f in modules)
        yield Op("cross_entropy", *pair, (logits, labels))
        pair = (lambda x, y, w, f=f.cross_entropy: f(x, y, w, reduction="sum") for f in modules)
        yield Op("cross_entropy weighted", *pair, (logits, labels, weight), False)
    for name in ("binary_cross_entropy_with_logits", "mse_loss", "smooth_l1_loss", "huber_loss"):
        losses = (getattr(module, name) for module in modules)
        pair = (lambda x, y, f=loss: f(x, y.detach()) for loss in losses)
        yield Op(name, *pair, (logits, target))
