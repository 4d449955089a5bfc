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

    def tensors_on(self, target: torch.device, dtype: torch.dtype | None = None) -> list:
        moved = []
        for t in self.tensors:
            if t is not None:
                # .to() alone would make a strided tensor dense.
                t = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=target).copy_(t)
                t = t.to(dtype) if dtype and t.is_floating_point() else t
            moved.append(t)
        return moved


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
    tensors = [_normal(generator, m, k)]
    for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
        tensors += [_normal(generator, fan_out, fan_in, scale=1 / math.sqrt(fan_in))]
        tensors += [_normal(generator, fan_out, scale=0.25)]
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
    generator = _generator("loss", shape)
    logits = _normal(generator, m, n, scale=3).to(dtype)
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


def _parameters(values) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(t.detach().clone()) for t in values]


def optimizer_ops(shape: Shape, dtype: torch.dtype, steps: int = 5) -> Iterator[Op]:
    """The parameters after some steps, and clipped gradients. Not in 16 bits, where rounding
    decides."""
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
            parameters = _parameters(tensors[:4])
            optimizer = getattr(module, name)(parameters, **OPTIMIZERS[name], **options)
            for step in range(steps):
                for parameter, grad in zip(parameters, tensors[4:], strict=True):
                    parameter.grad = grad * (1 + step)
                optimizer.step()
            return [p.detach() for p in parameters]

        return after

    def clipping(function):
        def clipped(*tensors):
            parameters = _parameters(tensors)
            for parameter, grad in zip(parameters, tensors, strict=True):
                parameter.grad = grad.detach().clone()
            return [function(parameters, 0.5), *(p.grad for p in parameters)]

        return clipped

    for name in OPTIMIZERS:
        pair = run(mlp_ext.optim, name), run(torch.optim, name, foreach=False)
        yield Op(name, *pair, (*values, *grads), differentiable=False)
    pair = (clipping(m.utils.clip_grad_norm_) for m in (mlp_ext.nn, torch.nn))
    yield Op("clip_grad_norm_", *pair, tuple(values), differentiable=False)


def step_ops(shape: Shape, dtype: torch.dtype, steps: int = 4) -> Iterator[Op]:
    """The parameters after whole training steps. SGD, whose steps are as small as the errors."""
    if dtype.itemsize < 4:
        return
    m, n, k = shape
    m = max(m, 4)  # rows that BatchNorm1d can normalize
    generator = _generator("step", shape)
    x = _normal(generator, m, k).to(dtype)
    y = torch.randint(5, (m,), generator=generator)

    def run(ours: bool):
        def after(x, y):
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = torch.nn.Sequential(
                    torch.nn.Linear(k, n), torch.nn.BatchNorm1d(n), torch.nn.GELU(),
                    torch.nn.Linear(n, 17), torch.nn.LayerNorm(17), torch.nn.Tanh(),
                    torch.nn.Linear(17, 5),
                ).to(x.device, x.dtype)  # fmt: skip
            optimizer = (mlp_ext if ours else torch).optim.SGD(
                model.parameters(), lr=0.05, momentum=0.9
            )
            step = ours and mlp_ext.TrainStep(model, F.cross_entropy, optimizer, clip_grad_norm=1.0)
            for _ in range(steps):
                if ours:
                    step(x, y)
                    continue
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            return [t.detach() for t in model.state_dict().values() if t.is_floating_point()]

        return after

    yield Op("TrainStep", run(True), run(False), (x, y), False, records=True)


FAMILIES = {
    "linear": linear_ops,
    "mlp": mlp_ops,
    "losses": loss_ops,
    "optimizers": optimizer_ops,
    "TrainStep": step_ops,
}
