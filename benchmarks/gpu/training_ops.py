"""What changes parameters, beside PyTorch's: optimizers, clipping, TrainStep. Not in 16 bits, where
rounding decides."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

import mlp_ext

from .ops import Op, Shape, generator_of, normal

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
    """The parameters after some steps, and clipped gradients."""
    if dtype.itemsize < 4:
        return
    m, n, k = shape
    generator = generator_of("optimizer", shape)
    shapes = ((n, k), (n,), (1,), (m, n))
    values = [normal(generator, *s).to(dtype) for s in shapes]
    # Of one size, because Adam's first steps are the signs of gradients, however small.
    grads = [normal(generator, *s).sign().to(dtype) * (0.5 + i) for i, s in enumerate(shapes)]

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
    generator = generator_of("step", shape)
    x = normal(generator, m, k).to(dtype)
    y = torch.randint(5, (m,), generator=generator)

    def start(module, x):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = torch.nn.Sequential(
                torch.nn.Linear(k, n), torch.nn.BatchNorm1d(n), torch.nn.GELU(),
                torch.nn.Linear(n, 17), torch.nn.LayerNorm(17), torch.nn.Tanh(),
                torch.nn.Linear(17, 5),
            ).to(x.device, x.dtype)  # fmt: skip
        return model, module.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def floating(model):
        return [t.detach() for t in model.state_dict().values() if t.is_floating_point()]

    def ours(x, y):
        model, optimizer = start(mlp_ext, x)
        step = mlp_ext.TrainStep(model, F.cross_entropy, optimizer, clip_grad_norm=1.0)
        for _ in range(steps):
            step(x, y)
        return floating(model)

    def theirs(x, y):
        model, optimizer = start(torch, x)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return floating(model)

    yield Op("TrainStep", ours, theirs, (x, y), False, records=True)
