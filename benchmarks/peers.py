"""Whatever trains a net, step by step: ours and what its users would run instead.

A competitor is a function from the name of a net to a `Trainer`, and a row in `COMPETITORS`; the
`loop` suite, its tables, its plot and its tests take it from there. One more form of ours has the
role OWN.

Threads: `torch.set_num_threads` governs PyTorch and mlp_ext. JAX's CPU client reads NPROC when it
is created, once a process, and scikit-learn's arithmetic is numpy's BLAS; both are set to torch's
number here, and `used_threads` says what they got.
"""

import importlib.metadata
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

import mlp_ext

from .harness import BASELINE, OURS, OWN, PEER, Unavailable
from .held import held
from .models import NETS, batch_of, plain_net

LEARNING_RATE, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-8  # Adam's defaults, in all of them


@dataclass(frozen=True)
class Trainer:
    """`step` does one step on the net's batch; `parameters` are as torch has them: (N, K), (N,)."""

    step: Callable[[], object]
    parameters: Callable[[], list[torch.Tensor]]


# ---- PyTorch and ours


def training_step(model, loss_fn, optimizer, features, labels) -> Callable[[], object]:
    """The loop's body, unchanged from what tutorials write."""

    def step():
        loss = loss_fn(model(features), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def torch_trainer(name: str, *, dtype=torch.float32, compiled=False, **options) -> Trainer:
    features, labels = batch_of(name)
    model = plain_net(name).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), **options)
    forward = model
    if compiled:
        torch.compiler.reset()  # every net is a recompilation of one forward, and those are limited
        forward = torch.compile(model, dynamic=False)
    step = training_step(forward, F.cross_entropy, optimizer, features.to(dtype), labels)
    return Trainer(step, lambda: list(model.parameters()))


def mlp_ext_trainer(name: str, *, dtype=torch.float32) -> Trainer:
    features, labels = batch_of(name)
    model = mlp_ext.fuse(plain_net(name).to(dtype))
    optimizer = mlp_ext.optim.Adam(model.parameters())
    loss_fn = mlp_ext.functional.cross_entropy
    step = training_step(model, loss_fn, optimizer, features.to(dtype), labels)
    return Trainer(step, lambda: list(model.parameters()))


def train_step_trainer(name: str) -> Trainer:
    features, labels = batch_of(name)
    model = plain_net(name)
    step = mlp_ext.TrainStep(model, F.cross_entropy, mlp_ext.optim.Adam(model.parameters()))
    return Trainer(lambda: step(features, labels), lambda: list(model.parameters()))


# ---- JAX


def installed(package: str) -> None:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise Unavailable(f"{package} is not installed (pip install 'mlp_ext[bench]')") from None


def jax_adam(name: str):
    """A whole step, (state, features, labels) -> (loss, state), yet to be jitted, and the first
    state. Weights are (K, N), as JAX's users have them."""
    installed("jax")
    if held():  # 247 GFLOP/s where two threads of AVX2 have 191: ynn::dot_fp32_..._avx512
        raise Unavailable(
            f"JAX cannot be held to {held()}: YNNPACK, its products, takes what it finds"
        )
    os.environ["NPROC"] = str(torch.get_num_threads())
    import jax
    import jax.numpy as jnp

    def loss_of(parameters, features, labels):
        hidden = features
        for weight, bias in parameters[:-1]:
            hidden = jnp.maximum(hidden @ weight + bias, 0)
        weight, bias = parameters[-1]
        logits = hidden @ weight + bias
        chosen = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - chosen)

    def adam_step(state, features, labels):
        parameters, first, second, steps = state
        loss, grads = jax.value_and_grad(loss_of)(parameters, features, labels)
        steps = steps + 1
        tree_map = jax.tree_util.tree_map
        first = tree_map(lambda m, g: BETA1 * m + (1 - BETA1) * g, first, grads)
        second = tree_map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, second, grads)
        step_size = LEARNING_RATE / (1 - BETA1**steps)
        root = jnp.sqrt(1 - BETA2**steps)
        parameters = tree_map(
            lambda p, m, v: p - step_size * m / (jnp.sqrt(v) / root + EPS),
            parameters,
            first,
            second,
        )
        return loss, (parameters, first, second, steps)

    def arrays():
        values = [jnp.array(p.detach().numpy().T) for p in plain_net(name).parameters()]
        return list(zip(values[::2], values[1::2], strict=True))

    def zeros():
        return [(jnp.zeros_like(w), jnp.zeros_like(b)) for w, b in arrays()]

    return adam_step, (arrays(), zeros(), zeros(), jnp.zeros((), jnp.float32))


def jax_trainer(name: str) -> Trainer:
    """The step as one jitted function, its state donated."""
    adam_step, state = jax_adam(name)
    import jax
    import jax.numpy as jnp

    features, labels = batch_of(name)
    features = jnp.array(features.numpy())
    labels = jnp.array(labels.numpy().astype("int32"))
    jitted = jax.jit(adam_step, donate_argnums=0)

    def step():
        nonlocal state
        loss, state = jax.block_until_ready(jitted(state, features, labels))
        return loss

    def parameters():
        flat = [value for layer in state[0] for value in layer]
        return [torch.tensor(value.__array__().T.copy()) for value in flat]

    return Trainer(step, parameters)


# ---- scikit-learn


def sklearn_model(name: str, shuffle: bool = False):
    """An MLPClassifier with Adam and without its L2 term, and the classes. The initial weights are
    its own; for two classes it has one logistic output in place of two."""
    installed("scikit-learn")
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits

    threadpool_limits(torch.get_num_threads(), user_api="blas")
    sizes, batch = NETS[name]
    model = MLPClassifier(
        sizes[1:-1], activation="relu", solver="adam", alpha=0.0, batch_size=batch, shuffle=shuffle,
        learning_rate_init=LEARNING_RATE, beta_1=BETA1, beta_2=BETA2, epsilon=EPS, random_state=0,
    )  # fmt: skip
    return model, list(range(sizes[-1]))


def sklearn_trainer(name: str) -> Trainer:
    """partial_fit on the net's batch: one step."""
    model, classes = sklearn_model(name)
    features, labels = (t.numpy() for t in batch_of(name))

    def parameters():
        pairs = zip(model.coefs_, model.intercepts_, strict=True)
        return [torch.tensor(value.T) for pair in pairs for value in pair]

    return Trainer(lambda: model.partial_fit(features, labels, classes=classes), parameters)


# ---- the competitors


@dataclass(frozen=True)
class Entry:
    trainer: Callable[[str], Trainer]
    role: str = PEER


COMPETITORS: dict[str, Entry] = {
    "torch Adam": Entry(torch_trainer),
    "torch fused Adam": Entry(lambda name: torch_trainer(name, fused=True), BASELINE),
    "torch.compile": Entry(lambda name: torch_trainer(name, compiled=True, fused=True)),
    "JAX jit": Entry(jax_trainer),
    "scikit-learn": Entry(sklearn_trainer),
    "mlp_ext": Entry(mlp_ext_trainer, OURS),
    "TrainStep": Entry(train_step_trainer, OWN),
}


def versions() -> dict[str, str]:
    """Of the peers' packages; "" for one that is missing."""
    found = {}
    for package in ("jax", "scikit-learn"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = ""
    return found


def used_threads() -> str:
    """The threads that this process's peers have, as far as they have been started."""
    tasks = Path("/proc/self/task")
    names = [(task / "comm").read_text() for task in tasks.iterdir()] if tasks.exists() else []
    pools = {"torch": torch.get_num_threads(), "JAX": sum("XLAEigen" in name for name in names)}
    try:
        from threadpoolctl import threadpool_info

        blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
        pools["numpy's BLAS"] = max(blas, default=0)
    except ImportError:
        pass
    return ", ".join(f"{name} {number}" for name, number in pools.items() if number)
