"""TrainStep, a whole training step in one call: against every peer, with normalizations, and with
products of bfloat16 (against autocast; the per cent are of the float32 peak)."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

import mlp_ext

from .bench_loop import stepper
from .harness import BASELINE, OURS, OWN, Case, Competitor
from .models import NETS, batch_of, flops_of, label, plain_net, step_bytes, step_flops
from .peers import COMPETITORS, training_step

PEERS = ("torch Adam", "torch fused Adam", "torch.compile", "JAX jit")
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BatchNorm1d": nn.BatchNorm1d,
    "LayerNorm": nn.LayerNorm,
}


def with_norms(name: str, norm: str) -> nn.Sequential:
    """The net with a normalization before each ReLU."""
    children: list[nn.Module] = []
    for child in plain_net(name):
        if isinstance(child, nn.ReLU):
            children.append(NORMS[norm](children[-1].out_features))
        children.append(child)
    return nn.Sequential(*children)


def train_step(model: nn.Module, name: str, **options):
    features, labels = batch_of(name)
    adam = mlp_ext.optim.Adam(model.parameters())
    step = mlp_ext.TrainStep(model, F.cross_entropy, adam, **options)
    return lambda: step(features, labels)


def torch_loop(model: nn.Module, name: str, autocast: bool = False):
    features, labels = batch_of(name)
    adam = torch.optim.Adam(model.parameters(), fused=True)
    step = training_step(model, F.cross_entropy, adam, features, labels)

    def under_autocast():
        with torch.autocast("cpu", torch.bfloat16):
            return step()

    return under_autocast if autocast else step


TANH_SIZES, TANH_ROWS = (4, 32, 16, 4), 10_000


def tanh_net(train) -> Callable[[], object]:
    """SimpleChains.jl's benchmark (2022): 72 us a step on 32 Zen 3 cores, 41 on 18 with AVX-512."""
    children: list[nn.Module] = []
    for inputs, outputs in zip(TANH_SIZES[:-1], TANH_SIZES[1:], strict=True):
        children += [nn.Linear(inputs, outputs), nn.Tanh()]
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(TANH_ROWS, TANH_SIZES[0], generator=generator)
    targets = torch.randn(TANH_ROWS, TANH_SIZES[-1], generator=generator)
    return train(nn.Sequential(*children[:-1]), features, targets)


def tanh_loop(model: nn.Module, features: torch.Tensor, targets: torch.Tensor):
    adam = torch.optim.Adam(model.parameters(), fused=True)
    return training_step(model, F.mse_loss, adam, features, targets)


def tanh_step(model: nn.Module, features: torch.Tensor, targets: torch.Tensor):
    step = mlp_ext.TrainStep(model, F.mse_loss, mlp_ext.optim.Adam(model.parameters()))
    return lambda: step(features, targets)


def cases(full: bool) -> Iterator[Case]:
    for name in NETS:
        competitors = {
            peer: Competitor(stepper(COMPETITORS[peer].trainer, name), COMPETITORS[peer].role)
            for peer in PEERS
        }
        competitors["TrainStep"] = Competitor(stepper(COMPETITORS["TrainStep"].trainer, name), OURS)
        yield Case(
            "train_step",
            label(name),
            competitors,
            flops=step_flops(name),
            bytes=step_bytes(name),
            ceiling="fma",
        )
    yield Case(
        "train_step",
        f"tanh {'-'.join(map(str, TANH_SIZES))}, MSE, {TANH_ROWS}",
        {
            "torch fused Adam": Competitor(lambda: tanh_net(tanh_loop), BASELINE),
            "TrainStep": Competitor(lambda: tanh_net(tanh_step), OURS),
        },
        flops=flops_of(TANH_SIZES, TANH_ROWS),
        ceiling="fma",
    )
    for name in ("book", "sac") if full else ("book",):
        for norm in NORMS:
            yield Case(
                "train_step",
                f"{name} with {norm}",
                {
                    "torch fused Adam": Competitor(
                        lambda name=name, norm=norm: torch_loop(with_norms(name, norm), name),
                        BASELINE,
                    ),
                    "TrainStep": Competitor(
                        lambda name=name, norm=norm: train_step(with_norms(name, norm), name), OURS
                    ),
                },
            )
    for name in ("mnist512", "wide") if full else ("wide",):
        yield Case(
            "train_step",
            f"{name} bfloat16",
            {
                "torch autocast": Competitor(
                    lambda name=name: torch_loop(plain_net(name), name, autocast=True), BASELINE
                ),
                "TrainStep float32": Competitor(
                    lambda name=name: train_step(plain_net(name), name), OWN
                ),
                "TrainStep": Competitor(
                    lambda name=name: train_step(
                        plain_net(name), name, compute_dtype=torch.bfloat16
                    ),
                    OURS,
                ),
            },
            flops=step_flops(name),
            ceiling="fma",
        )
