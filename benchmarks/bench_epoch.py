"""A whole pass over a data set, shuffled, its batches included: microseconds an epoch.

PyTorch with its DataLoader; the same loop with the pieces of mlp_ext (fuse, loss, optimizer,
DataLoader); TrainStep in the loop; TrainStep.epoch. JAX jits the whole pass: a permutation and a
scan of steps. scikit-learn's is partial_fit over the data set.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import mlp_ext

from .harness import BASELINE, OURS, OWN, Case, Competitor
from .models import NETS, plain_net, step_flops
from .peers import jax_adam, sklearn_model

SAMPLES = {"seed": 2000, "mnist": 5000}


def data_set(name: str) -> TensorDataset:
    sizes, _ = NETS[name]
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(SAMPLES[name], sizes[0], generator=generator)
    return TensorDataset(features, torch.randint(sizes[-1], (SAMPLES[name],), generator=generator))


def loader_of(name: str, kind: type[DataLoader]) -> DataLoader:
    return kind(data_set(name), batch_size=NETS[name][1], shuffle=True, drop_last=True)


def loop(model, optimizer, loss_fn, loader: DataLoader):
    def epoch():
        for features, labels in loader:
            loss = loss_fn(model(features), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


def torch_epoch(name: str, **options):
    model = plain_net(name)
    adam = torch.optim.Adam(model.parameters(), **options)
    return loop(model, adam, F.cross_entropy, loader_of(name, DataLoader))


def pieces_epoch(name: str):
    model = mlp_ext.fuse(plain_net(name))
    adam = mlp_ext.optim.Adam(model.parameters())
    loader = loader_of(name, mlp_ext.data.DataLoader)
    return loop(model, adam, mlp_ext.functional.cross_entropy, loader)


def train_step_epoch(name: str, compiled: bool):
    model = plain_net(name)
    adam = mlp_ext.optim.Adam(model.parameters())
    step = mlp_ext.TrainStep(model, F.cross_entropy, adam)
    loader = loader_of(name, mlp_ext.data.DataLoader)
    if compiled:
        return lambda: step.epoch(loader)

    def epoch():
        for features, labels in loader:
            step(features, labels)

    return epoch


def jax_epoch(name: str):
    adam_step, state = jax_adam(name)
    import jax
    import jax.numpy as jnp

    features, labels = (jnp.array(t.numpy()) for t in data_set(name).tensors)
    labels = labels.astype("int32")
    batch = NETS[name][1]
    batches = len(features) // batch

    def one_pass(state, key):
        order = jax.random.permutation(key, len(features))[: batches * batch]

        def one_step(state, index):
            loss, state = adam_step(state, features[index], labels[index])
            return state, loss

        return jax.lax.scan(one_step, state, order.reshape(batches, batch))

    jitted = jax.jit(one_pass, donate_argnums=0)
    key = jax.random.PRNGKey(0)

    def epoch():
        nonlocal state, key
        key, now = jax.random.split(key)
        state, losses = jax.block_until_ready(jitted(state, now))
        return losses

    return epoch


def sklearn_epoch(name: str):
    model, classes = sklearn_model(name, shuffle=True)
    features, labels = (t.numpy() for t in data_set(name).tensors)
    return lambda: model.partial_fit(features, labels, classes=classes)


def cases(full: bool) -> Iterator[Case]:
    titles = {"seed": "toy (2-30-20-2), 2000 samples, batch 2", "mnist": "MNIST-5k, batch 64"}
    for name, title in titles.items():
        yield Case(
            "epoch",
            title,
            {
                "torch Adam": Competitor(lambda name=name: torch_epoch(name)),
                "torch fused Adam": Competitor(
                    lambda name=name: torch_epoch(name, fused=True), BASELINE
                ),
                "JAX scan": Competitor(lambda name=name: jax_epoch(name)),
                "scikit-learn": Competitor(lambda name=name: sklearn_epoch(name)),
                "mlp_ext loop": Competitor(lambda name=name: pieces_epoch(name), OWN),
                "TrainStep loop": Competitor(
                    lambda name=name: train_step_epoch(name, compiled=False), OWN
                ),
                "TrainStep.epoch": Competitor(
                    lambda name=name: train_step_epoch(name, compiled=True), OURS
                ),
            },
            flops=step_flops(name) * (SAMPLES[name] // NETS[name][1]),
            ceiling="fma",
        )
