"""A two-class network of 2-30-20-2 neurons, trained on five points, saved and loaded again.

    python examples/toy_classifier.py            with mlp_ext
    python examples/toy_classifier.py --plain    with PyTorch alone

An ordinary PyTorch program: three imported names are swapped and nothing else. Both forms print
the same log, end with the same parameters up to rounding, and read each other's checkpoints.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

if "--plain" in sys.argv:
    from torch.nn import Sequential
    from torch.nn.functional import cross_entropy
    from torch.optim import SGD
else:  # the swap: each name is a drop-in replacement, and any one of them can be swapped alone
    from mlp_ext.functional import cross_entropy
    from mlp_ext.nn import Sequential
    from mlp_ext.optim import SGD

NUM_EPOCHS = 3
DEFAULT_CHECKPOINT = Path(__file__).resolve().parents[1] / "build" / "demo" / "toy_classifier.pt"


class NeuralNetwork(nn.Module):
    """Logits (N, num_outputs) of inputs (N, num_inputs), through hidden layers of 30 and 20.

    ``Sequential`` keeps its children and their indices in either form, so the state_dict keys are
    ``layers.0.weight`` ... ``layers.4.bias`` whichever one it is.
    """

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.layers = Sequential(
            nn.Linear(num_inputs, 30),
            nn.ReLU(),
            nn.Linear(30, 20),
            nn.ReLU(),
            nn.Linear(20, num_outputs),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class ToyDataset(Dataset):
    """Points (N, 2) and their class indices (N,)."""

    def __init__(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        self.features = features
        self.labels = labels

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.features[index], self.labels[index]

    def __len__(self) -> int:
        return self.labels.shape[0]


TRAIN_SET = ToyDataset(
    torch.tensor([[-1.2, 3.1], [-0.9, 2.9], [-0.5, 2.6], [2.3, -1.1], [2.7, -1.5]]),
    torch.tensor([0, 0, 0, 1, 1]),
)
TEST_SET = ToyDataset(torch.tensor([[-0.8, 2.8], [2.6, -1.6]]), torch.tensor([0, 1]))


def train(model: nn.Module, loader: DataLoader) -> None:
    optimizer = SGD(model.parameters(), lr=0.5)
    for epoch in range(NUM_EPOCHS):
        model.train()
        for batch_idx, (features, labels) in enumerate(loader):
            logits = model(features)
            loss = cross_entropy(logits, labels)

            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            print(
                f"Epoch: {epoch + 1:03d}/{NUM_EPOCHS:03d}"
                f" | Batch {batch_idx:03d}/{len(loader):03d}"
                f" | Train Loss: {loss:.2f}"
            )


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader) -> float:
    """Share of the samples whose largest logit is that of their class; leaves `model` in eval."""
    model.eval()
    correct = sum((model(x).argmax(dim=1) == y).sum().item() for x, y in loader)
    return correct / len(loader.dataset)


def main() -> NeuralNetwork:
    """Trains, tests, saves, loads; returns the model as it was trained."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plain", action="store_true", help="PyTorch alone, without mlp_ext")
    parser.add_argument("--checkpoint", type=Path, default=DEFAULT_CHECKPOINT, metavar="FILE")
    args = parser.parse_args()

    torch.manual_seed(123)
    model = NeuralNetwork(num_inputs=2, num_outputs=2)
    train_loader = DataLoader(TRAIN_SET, batch_size=2, shuffle=True, drop_last=True, num_workers=0)
    test_loader = DataLoader(TEST_SET, batch_size=2)
    train(model, train_loader)

    # drop_last would leave one of the five points out of the count.
    print(f"Train accuracy: {accuracy(model, DataLoader(TRAIN_SET, batch_size=2)):.0%}")
    print(f"Test accuracy: {accuracy(model, test_loader):.0%}")

    args.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), args.checkpoint)
    restored = NeuralNetwork(num_inputs=2, num_outputs=2)
    restored.load_state_dict(torch.load(args.checkpoint))
    print(f"Test accuracy, restored from the checkpoint: {accuracy(restored, test_loader):.0%}")
    return model


if __name__ == "__main__":
    main()
