"""TrainStep.epoch: the same steps as the loop over the loader, also where it is compiled code."""

import copy
import signal
import threading
import time

import pytest
import torch
import torch.nn.functional as F
from cases import dtypes
from torch import nn
from torch.utils.data import TensorDataset
from train_twins import draw, net, snapshot

import mlp_ext
from mlp_ext import TrainStep
from mlp_ext.data import DataLoader

SIZES = (9, 12, 3)


def data_set(kind, n, sizes=SIZES, dtype=torch.float64):
    return TensorDataset(*draw(kind, n, sizes, dtype))


def dropping_net(dtype=torch.float64):
    return nn.Sequential(
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(9, 12),
        nn.BatchNorm1d(12),
        nn.Tanh(),
        nn.Dropout(0.3),
        nn.Linear(12, 3),
    ).to(dtype)


def trained(model, make_optimizer, loss_fn, dataset, epochs, by_epoch, **options):
    """All that a user can see after some epochs."""
    model = copy.deepcopy(model)
    step = TrainStep(model, loss_fn, make_optimizer(model.parameters()))
    torch.manual_seed(3)
    generator = options.pop("generator", None)
    if generator is not None:
        options["generator"] = generator = torch.Generator().manual_seed(generator)
    loader = DataLoader(dataset, **options)
    assert loader.gathers
    losses = []
    for _ in range(epochs):
        if by_epoch:
            mean, each = step.epoch(loader, batch_losses=True)
            assert mean == pytest.approx(each.double().mean().item(), rel=1e-12)
            losses += each.tolist()
        else:
            losses += [step(x, y).item() for x, y in loader]
    seen = {
        "model": model.state_dict(),
        "optimizer": step.optimizer.state_dict(),
        "losses": losses,
        "rng": torch.get_rng_state(),
        "generator": generator and generator.get_state(),
    }
    return seen


def kept(step):
    """What a refused epoch leaves alone; a loader that begins draws."""
    return {key: value for key, value in snapshot(step).items() if key != "rng"}


def assert_equal(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


OPTIMIZERS = {
    "adam": lambda p: mlp_ext.optim.Adam(p, lr=1e-2),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
}
LOADERS = {
    "in order": {},
    "shuffled": {"shuffle": True},
    "dropping": {"shuffle": True, "drop_last": True},
    "generator": {"shuffle": True, "generator": 5},
}


@pytest.mark.parametrize("options", LOADERS.values(), ids=LOADERS.keys())
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@dtypes("f64", "f32")
def test_same_as_the_loop(options, optimizer, dtype, threads):
    """To the bit: batches, draws, steps, the ragged last batch, running statistics."""
    torch.manual_seed(0)
    model, dataset = dropping_net(dtype), data_set("classes", 103, dtype=dtype)
    results = [
        trained(model, optimizer, F.cross_entropy, dataset, 3, by, batch_size=8, **options)
        for by in (True, False)
    ]
    assert_equal(*results)


@pytest.mark.parametrize(
    ("kind", "loss_fn"),
    [
        ("values", F.mse_loss),
        ("values", nn.HuberLoss(reduction="sum")),
        ("probabilities", nn.BCEWithLogitsLoss(pos_weight=torch.ones(3, dtype=torch.float64))),
        ("classes", nn.CrossEntropyLoss(ignore_index=1, label_smoothing=0.1)),
    ],
)
def test_losses(kind, loss_fn):
    model, dataset = net(SIZES), data_set(kind, 50)
    adam = OPTIMIZERS["adam"]
    results = [
        trained(model, adam, loss_fn, dataset, 2, by, batch_size=7, shuffle=True)
        for by in (True, False)
    ]
    assert_equal(*results)


@pytest.mark.parametrize("shape", ((400, (33, 40, 20, 5)), (150, (400, 350, 33, 5))))
def test_large_nets(shape, threads):
    batch, sizes = shape
    model, dataset = net(sizes), data_set("classes", 3 * batch + 20, sizes)
    results = [
        trained(model, OPTIMIZERS["adam"], F.cross_entropy, dataset, 2, by, batch_size=batch)
        for by in (True, False)
    ]
    assert_equal(*results)


def test_samples_of_many_dimensions_and_other_strides():
    model = dropping_net()
    x = torch.randn(3, 3, 40, dtype=torch.float64).permute(2, 0, 1)
    y = torch.randint(3, (80,))[::2]
    results = [
        trained(
            model, OPTIMIZERS["adam"], F.cross_entropy, TensorDataset(x, y), 1, by, batch_size=8
        )
        for by in (True, False)
    ]
    assert_equal(*results)


def test_other_loaders_run_the_loop():
    """And give the same: torch's loader, a list of batches, one that does not gather."""
    dataset, losses = data_set("classes", 40), []
    model = net(SIZES)
    for loader in (
        DataLoader(dataset, batch_size=8),
        torch.utils.data.DataLoader(dataset, batch_size=8),
        DataLoader(dataset, batch_size=8, collate_fn=lambda b: torch.utils.data.default_collate(b)),
        [tuple(t[i : i + 8] for t in dataset.tensors) for i in range(0, 40, 8)],
    ):
        twin = copy.deepcopy(model)
        step = TrainStep(twin, F.cross_entropy, OPTIMIZERS["adam"](twin.parameters()))
        losses.append(step.epoch(loader, batch_losses=True))
    for other in losses[1:]:
        assert_equal(losses[0], other)


def test_no_batches():
    model = net(SIZES)
    step = TrainStep(model, F.cross_entropy, OPTIMIZERS["adam"](model.parameters()))
    loader = DataLoader(data_set("classes", 3), batch_size=8, drop_last=True)
    for nothing in (loader, []):
        mean, losses = step.epoch(nothing, batch_losses=True)
        assert mean != mean and losses.shape == (0,)


def test_options_between_epochs_are_read():
    dataset = data_set("classes", 64)
    model, plain = net(SIZES), None
    plain = copy.deepcopy(model)
    steps = [
        TrainStep(m, F.cross_entropy, OPTIMIZERS["adam"](m.parameters())) for m in (model, plain)
    ]
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(s.optimizer, 0.5) for s in steps]
    for _ in range(4):
        steps[0].epoch(DataLoader(dataset, batch_size=16))
        for x, y in torch.utils.data.DataLoader(dataset, batch_size=16):
            steps[1](x, y)
        for scheduler in schedulers:
            scheduler.step()
    assert_equal(model.state_dict(), plain.state_dict())


@pytest.mark.parametrize("place", (0, 21, 39))
@pytest.mark.parametrize("begun", (False, True))
def test_a_bad_batch_leaves_whole_steps(place, begun):
    """A class that does not exist is found in its batch, as in the loop."""
    model, dataset = net(SIZES), data_set("classes", 40)
    step = TrainStep(model, F.cross_entropy, OPTIMIZERS["adam"](model.parameters()))
    if begun:
        step.epoch(DataLoader(dataset, batch_size=8))
    twin = copy.deepcopy(model)
    adam = copy.deepcopy(step.optimizer.state_dict())
    other = TrainStep(twin, F.cross_entropy, OPTIMIZERS["adam"](twin.parameters()))
    other.optimizer.load_state_dict(adam)
    before = kept(step)
    dataset.tensors[1][place] = 3
    with pytest.raises(IndexError, match="3 is out of bounds"):
        step.epoch(DataLoader(dataset, batch_size=8))
    if place < 8:
        assert_equal(before, kept(step))
    for b in range(place // 8):
        other(*(t[8 * b : 8 * b + 8] for t in dataset.tensors))
    assert_equal(model.state_dict(), twin.state_dict())
    assert_equal(step.optimizer.state_dict(), other.optimizer.state_dict())


def test_wrong_data_is_refused():
    model = net(SIZES)
    step = TrainStep(model, F.cross_entropy, OPTIMIZERS["adam"](model.parameters()))
    x, y = draw("classes", 20, SIZES)
    cases = [
        ((x.float(), y), RuntimeError, "dtype Float.*is Double"),
        ((x[:, :5], y), RuntimeError, "shape"),
        ((x, y.float()), (RuntimeError, ValueError), "target|Long"),
        ((x, y, y), ValueError, "got 3 parts"),
        ((x,), ValueError, "got 1 parts"),
    ]
    for tensors, error, message in cases:
        before = kept(step)
        loader = DataLoader(TensorDataset(*tensors), batch_size=5)
        with pytest.raises(error, match=message):
            step.epoch(loader)
        assert_equal(before, kept(step))


@pytest.fixture
def interrupts():
    """SIGINT raises KeyboardInterrupt: a shell starts its background jobs with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupt(interrupts):
    """Ctrl-C stops an epoch after a whole step, soon."""
    model = net((30, 64, 64, 3), dtype=torch.float32)
    step = TrainStep(model, F.cross_entropy, OPTIMIZERS["adam"](model.parameters()))
    loader = DataLoader(data_set("classes", 2_000_000, (30, 3), torch.float32), batch_size=2)
    times = []

    def interrupt():
        times.append(time.monotonic())
        signal.raise_signal(signal.SIGINT)

    timer = threading.Timer(0.2, interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        step.epoch(loader)
    assert time.monotonic() - times[0] < 5  # of an epoch that takes longer; busy machines are slow
    timer.join()
    counts = {int(s["step"]) for s in step.optimizer.state.values()}
    assert len(counts) == 1 and 0 < counts.pop() < 1_000_000
    step.epoch(DataLoader(data_set("classes", 8, (30, 3), torch.float32), batch_size=2))


def test_other_threads_run_meanwhile():
    """The GIL is free during an epoch."""
    model = net((30, 64, 64, 3), dtype=torch.float32)
    step = TrainStep(model, F.cross_entropy, OPTIMIZERS["adam"](model.parameters()))
    loader = DataLoader(data_set("classes", 100_000, (30, 3), torch.float32), batch_size=2)
    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    begin = time.monotonic()
    step.epoch(loader)
    end = time.monotonic()
    done.set()
    thread.join()
    assert sum(begin < t < end for t in ticks) >= 5
