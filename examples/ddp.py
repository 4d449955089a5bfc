"""A classifier trained by several processes, each on its part of a batch.

    torchrun --standalone --nproc-per-node 2 examples/ddp.py
    torchrun --standalone --nproc-per-node 2 examples/ddp.py --train-step
    python examples/ddp.py                                     one process, the same parameters

The net is fused, loss and optimizer are mlp_ext's. DistributedDataParallel averages the gradients,
or with --train-step mlp_ext.TrainStep does. Each process takes one thread: processes share the
cores.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler, TensorDataset

import mlp_ext

BATCH, EPOCHS = 64, 3


def make_data() -> TensorDataset:
    """Four clouds of points in eight dimensions, 512 points in all."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(512) % 4
    centres = 2 * torch.randn(4, 8, generator=generator)
    return TensorDataset(centres[labels] + torch.randn(512, 8, generator=generator), labels)


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)
    )


def epoch_by_loop(model: nn.Module, optimizer: torch.optim.Optimizer, world: int):
    """A function of a loader: one epoch, which returns its mean loss."""
    parallel = DistributedDataParallel(model) if world > 1 else model

    def epoch(loader) -> float:
        losses = []
        for x, y in loader:
            loss = mlp_ext.functional.cross_entropy(parallel(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return sum(losses) / len(losses)

    return epoch


def epoch_by_train_step(model: nn.Module, optimizer: torch.optim.Optimizer, world: int):
    """The same."""
    group = dist.group.WORLD if world > 1 else None
    return mlp_ext.TrainStep(model, nn.CrossEntropyLoss(), optimizer, process_group=group).epoch


def train(rank: int, world: int, by_train_step: bool) -> nn.Module:
    """This process's copy of the model after training; the copies of all processes are equal."""
    model = mlp_ext.fuse(make_model())
    optimizer = mlp_ext.optim.Adam(model.parameters(), lr=0.01)
    run_epoch = (epoch_by_train_step if by_train_step else epoch_by_loop)(model, optimizer, world)
    data = make_data()
    sampler = DistributedSampler(data, world, rank, seed=2)
    loader = mlp_ext.data.DataLoader(data, batch_size=BATCH // world, sampler=sampler)
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        loss = run_epoch(loader)
        if rank == 0:
            print(f"epoch {epoch + 1}/{EPOCHS}: loss {loss:.3f} on this process's part")
    return model


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    x, y = make_data().tensors
    return (model(x).argmax(1) == y).double().mean().item()


def main() -> nn.Module:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", type=Path, metavar="FILE", help="where the parameters go")
    parser.add_argument("--train-step", action="store_true", help="by mlp_ext.TrainStep")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("gloo")
    model = train(rank, world, args.train_step)
    if rank == 0:
        print(f"accuracy of {world} process{'es' if world > 1 else ''}: {accuracy(model):.1%}")
        if args.save:
            torch.save(model.state_dict(), args.save)
    if world > 1:
        dist.destroy_process_group()
    return model


if __name__ == "__main__":
    main()
