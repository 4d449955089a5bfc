"""TrainStep, a whole training step in one call: against every peer, with normalizations, and with
products of bfloat16 (against autocast; the per cent are of the float32 peak)."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

import mlp_ext

from .bench_loop import stepper
from .harness import BASELINE, OURS, OWN, Case, Competitor
from .models import NETS, batch_of, label, plain_net, step_bytes, step_flops
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
