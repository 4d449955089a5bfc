"""Tabular regression with all that a real training has: schedule, early stopping, best model.

    python examples/tabular.py [--plain]

Predicts how diabetes goes on within a year from ten measurements of a patient (442 patients; the
data set ships with scikit-learn: Efron et al. 2004). A whole pass over the training set is one
call, `step.epoch(loader)`; between two of them everything is plain PyTorch: evaluation, the
schedule of the learning rate, a copy of the best parameters, the checkpoint. --plain runs the same
training with PyTorch alone; both reach the same error.
"""

import argparse
import copy
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import mlp_ext

try:
    from sklearn.datasets import load_diabetes
except ModuleNotFoundError as missing:
    raise SystemExit("This example needs scikit-learn: pip install scikit-learn") from missing

SEED, LEARNING_RATE, WEIGHT_DECAY = 0, 3e-4, 0.1


def load() -> tuple[TensorDataset, TensorDataset, TensorDataset, float]:
    """Training, validation and test patients (60, 20, 20 %): features (N, 10) and targets (N, 1),
    both scaled by the training set's mean and deviation; and the deviation of the targets."""
    features, targets = (
        torch.from_numpy(array).float() for array in load_diabetes(return_X_y=True, scaled=False)
    )
    targets = targets.unsqueeze(1)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(SEED))
    train, validation, test = order.tensor_split([len(order) * 6 // 10, len(order) * 8 // 10])

    def scaled(values: Tensor) -> Tensor:
        return (values - values[train].mean(0)) / values[train].std(0)

    x, y = scaled(features), scaled(targets)
    sets = [TensorDataset(x[part], y[part]) for part in (train, validation, test)]
    return (*sets, targets[train].std().item())


def build() -> nn.Sequential:
    torch.manual_seed(SEED)
    return nn.Sequential(
        *(nn.Linear(10, 64), nn.LayerNorm(64), nn.SiLU()),
        *(nn.Linear(64, 64), nn.LayerNorm(64), nn.SiLU()),
        nn.Linear(64, 1),
    )


@torch.no_grad()
def error(model: nn.Module, dataset: TensorDataset) -> float:
    """Mean squared error of the scaled targets."""
    features, targets = dataset.tensors
    model.eval()
    result = F.mse_loss(model(features), targets).item()
    model.train()
    return result


def plain_epoch(model, optimizer, loader) -> float:
    losses = []
    for features, targets in loader:
        loss = F.mse_loss(model(features), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return math.fsum(losses) / len(losses)


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plain", action="store_true", help="with PyTorch alone")
    parser.add_argument("--epochs", type=int, default=200, help="at most")
    parser.add_argument("--patience", type=int, default=30, help="epochs without a better one")
    parser.add_argument("--checkpoint", type=Path, help="where to save the best model")
    args = parser.parse_args(argv)

    train, validation, test, deviation = load()
    model = build()
    order = torch.Generator().manual_seed(SEED)
    options = {"batch_size": 16, "shuffle": True, "drop_last": True, "generator": order}
    if args.plain:
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
        )
        loader = DataLoader(train, **options)
    else:
        optimizer = mlp_ext.optim.AdamW(
            model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
        )
        loader = mlp_ext.data.DataLoader(train, **options)
        step = mlp_ext.TrainStep(model, F.mse_loss, optimizer, clip_grad_norm=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)

    best, best_epoch, best_state = math.inf, 0, {}
    seconds, epochs = 0.0, 0
    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        loss = plain_epoch(model, optimizer, loader) if args.plain else step.epoch(loader)
        seconds += time.perf_counter() - start
        epochs += 1
        schedule.step()
        validated = error(model, validation)
        if validated < best:
            best, best_epoch, best_state = validated, epoch, copy.deepcopy(model.state_dict())
        if epoch % 10 == 0:
            rate = schedule.get_last_lr()[0]
            print(f"epoch {epoch:3}: loss {loss:.4f}, validation {validated:.4f}, lr {rate:.2e}")
        if epoch - best_epoch >= args.patience:
            print(f"No better model for {args.patience} epochs.")
            break

    model.load_state_dict(best_state)
    if args.checkpoint:
        torch.save(best_state, args.checkpoint)
        print(f"Checkpoint: {args.checkpoint}")
    tested = error(model, test)
    print(
        f"Best model, of epoch {best_epoch}: test error {math.sqrt(tested) * deviation:.1f} of a "
        f"deviation of {deviation:.1f} (R2 {1 - tested:.2f})"
    )
    print(f"{1e3 * seconds / epochs:.2f} ms of training an epoch")
    return {"validation": best, "test": tested, "epoch": best_epoch, "ms": 1e3 * seconds / epochs}


if __name__ == "__main__":
    main()
