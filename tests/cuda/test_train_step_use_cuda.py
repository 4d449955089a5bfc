"""TrainStep on CUDA in use: changes of the model between calls, errors, epochs, streams, memory, no
waiting for the GPU, and training that goes on on another device."""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from on_device import DEVICE, cuda, cuda_only, to_device
from step_twins import DeviceTwins, batch, way  # noqa: F401  (a fixture)
from torch import nn
from torch.utils.data import TensorDataset
from train_twins import draw, make, net

import mlp_ext
from mlp_ext import TrainStep, optim

pytestmark = cuda
SIZES = (7, 9, 6, 3)
SGD = make("SGD", lr=0.1, momentum=0.9)
ADAM = make("Adam", lr=3e-3, eps=1e-4)


def replace_child(model):
    model[1] = nn.SiLU()


def replace_last(model):
    model[3] = nn.ELU()


def move_values(model):
    for p in model.parameters():
        p.data = p.data.clone() * 0.5


def load(model):
    values = {name: value * 0.5 for name, value in model.state_dict().items()}
    model.load_state_dict(values)


def freeze(model):
    model[0].weight.requires_grad_(False)
    model[0].weight.grad = None


def grow(model):
    model.append(nn.Softplus())


def in_place(model):
    with torch.no_grad():
        model[2].weight.mul_(-0.5)


CHANGES = (replace_child, replace_last, move_values, load, freeze, grow, in_place)


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_changes_between_calls(change):
    twins = DeviceTwins(net(SIZES), F.mse_loss, SGD)
    twins.run("values", 8, SIZES, 2)
    for model in (twins.model, twins.plain):
        change(model)
    twins.run("values", 8, SIZES, 3)
    twins.check()


def test_training_and_evaluation():
    model = nn.Sequential(nn.Linear(7, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 3)).double()
    twins = DeviceTwins(model, F.mse_loss, SGD)
    for training in (True, False, True):
        for each in (twins.model, twins.plain):
            each.train(training)
        twins.run("values", 8, SIZES, 2)
    twins.check()
    assert int(twins.model[1].num_batches_tracked) == 4


def test_the_loop_and_the_step_in_turn():
    twins = DeviceTwins(net(SIZES), F.mse_loss, ADAM)
    for _ in range(3):
        twins.run("values", 8, SIZES, 2)
        data = batch("values", 8, SIZES, torch.float64)
        torch.testing.assert_close(twins.eager(*data, plain=False), twins.eager(*data))
        twins.optimizer.zero_grad()
    twins.check()


def test_two_models_in_turn():
    pairs = [DeviceTwins(net(SIZES), F.mse_loss, maker) for maker in (SGD, ADAM)]
    for _ in range(4):
        for twins in pairs:
            twins.run("values", 8, SIZES, 1)
    for twins in pairs:
        twins.check()


# ---- errors


def inferred(t):
    with torch.inference_mode():
        return t.clone()


ELSEWHERE = "cpu" if DEVICE == "cuda" else "meta"
BAD_CALLS = {
    "x elsewhere": lambda x, y: (x.to(ELSEWHERE), y),
    "y elsewhere": lambda x, y: (x, y.to(ELSEWHERE)),
    "x requires grad": lambda x, y: (x.clone().requires_grad_(), y),
    "too narrow": lambda x, y: (x[:, :5], y),
    "of another dtype": lambda x, y: (x.float(), y),
    "sparse": lambda x, y: (x.to_sparse(), y),
    "no rows": lambda x, y: (x[:0], y[:0]),
    "too few targets": lambda x, y: (x, y[:5]),
    "made under inference_mode": lambda x, y: (inferred(x), y),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_change_nothing(case):
    twins = DeviceTwins(net(SIZES), F.mse_loss, SGD)
    twins.run("values", 8, SIZES, 1)
    before = copy.deepcopy((twins.model.state_dict(), twins.optimizer.state_dict()))
    with pytest.raises((RuntimeError, ValueError)):
        twins.step(*BAD_CALLS[case](*batch("values", 8, SIZES, torch.float64)))
    after = (twins.model.state_dict(), twins.optimizer.state_dict())
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    twins.run("values", 8, SIZES, 2)
    twins.check()


TARGETS = {
    "broadcasts": lambda y: y[:1],
    "of another dtype": lambda y: y.float(),
    "integers": lambda y: y.long(),
    "one column": lambda y: y[:, :1],
}


@pytest.mark.filterwarnings("ignore:.*target size")
@pytest.mark.parametrize("case", TARGETS)
def test_targets_that_the_loop_takes(case):
    twins = DeviceTwins(net(SIZES), F.mse_loss, SGD)
    for _ in range(3):
        x, y = batch("values", 8, SIZES, torch.float64)
        ours, theirs = twins.step(x, TARGETS[case](y)), twins.eager(x, TARGETS[case](y))
        torch.testing.assert_close(ours, theirs)
    twins.check()


def test_hooks_and_autocast_are_refused():
    twins = DeviceTwins(net(SIZES), F.mse_loss, SGD)
    data = batch("values", 8, SIZES, torch.float64)
    with torch.autocast(DEVICE, torch.bfloat16), pytest.raises(RuntimeError, match="autocast"):
        twins.step(*data)
    handle = twins.model[0].register_forward_hook(lambda *arguments: None)
    with pytest.raises(RuntimeError, match="a hook was registered"):
        twins.step(*data)
    handle.remove()
    twins.run("values", 8, SIZES, 2)
    twins.check()


@cuda_only
def test_a_model_on_two_devices_is_refused():
    model = net(SIZES)
    model[0].to(DEVICE)
    with pytest.raises(ValueError):
        TrainStep(model, F.mse_loss, torch.optim.SGD(model.parameters(), lr=0.1))


# ---- epochs


@pytest.mark.parametrize("loader", [torch.utils.data.DataLoader, mlp_ext.data.DataLoader])
@pytest.mark.parametrize("drop_last", [True, False], ids=["whole", "rest"])
def test_an_epoch_of_a_loader_on_the_cpu(loader, drop_last):
    """The batches are moved to the device; the last one may be smaller."""
    data = TensorDataset(*draw("classes", 50, SIZES, torch.float64))
    twins = DeviceTwins(net(SIZES), F.cross_entropy, ADAM)
    for _ in range(3):
        mean, losses = twins.step.epoch(loader(data, 16, drop_last=drop_last), batch_losses=True)
        expected = [twins.eager(*to_device(x, y)) for x, y in loader(data, 16, drop_last=drop_last)]
        torch.testing.assert_close(losses.cpu(), torch.stack(expected).cpu())
        assert mean == pytest.approx(losses.double().mean().item())
    twins.check()


def test_an_epoch_without_batches():
    twins = DeviceTwins(net(SIZES), F.cross_entropy, SGD)
    mean, losses = twins.step.epoch([], batch_losses=True)
    assert mean != mean and losses.shape == (0,)


# ---- the GPU's time and memory


@cuda_only
def test_a_step_does_not_wait_for_the_gpu():
    """No synchronisation in a step whose graph is there, dropout and clipping included."""
    model = nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 3)).to(DEVICE)
    for optimizer in (
        optim.Adam(model.parameters()),
        optim.SGD(model.parameters(), 0.1, momentum=0.9),
        torch.optim.Adam(model.parameters(), fused=True),
    ):
        step = TrainStep(model, F.cross_entropy, optimizer, clip_grad_norm=0.5)
        data = batch("classes", 8, (7, 3), torch.float32)
        step(*data)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                loss = step(*data)
                step(*data, keep_grad=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert loss.device.type == "cuda" and loss.isfinite()


@cuda_only
def test_steps_allocate_nothing_that_stays():
    model = net((256, 256, 10), dtype=torch.float32).to(DEVICE)
    step = TrainStep(model, F.cross_entropy, optim.Adam(model.parameters()))
    data = batch("classes", 512, (256, 10), torch.float32)
    for _ in range(3):
        step(*data)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(20):
        step(*data)
    assert torch.cuda.memory_allocated() == before


@cuda_only
def test_a_step_that_is_gone_gives_its_memory_back():
    model = net((256, 256, 10), dtype=torch.float32).to(DEVICE)
    data = batch("classes", 4096, (256, 10), torch.float32)

    def one():
        step = TrainStep(model, F.cross_entropy, torch.optim.SGD(model.parameters(), lr=0.1))
        step(*data)

    def held():
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    one()
    before = held()
    for _ in range(5):
        one()
    assert held() <= before


@cuda_only
def test_a_step_on_another_stream():
    twins = DeviceTwins(net(SIZES), F.mse_loss, SGD)
    twins.run("values", 8, SIZES, 1)
    stream = torch.cuda.Stream()
    for _ in range(3):
        data = batch("values", 8, SIZES, torch.float64)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)
            late = data[0].clone()
            twins.step(late, data[1])
        torch.cuda.current_stream().wait_stream(stream)
        twins.eager(*data)
    torch.cuda.synchronize()
    twins.check()


# ---- states


@cuda_only
def test_training_goes_on_on_the_other_device():
    """state_dicts of model and optimizer, CPU to CUDA and back, between steps of each."""
    model = net(SIZES)
    plain = copy.deepcopy(model)
    data = [draw("values", 8, SIZES) for _ in range(9)]
    plain_adam = torch.optim.Adam(plain.parameters(), lr=3e-3, eps=1e-4)
    states = None
    for i, device in enumerate(("cpu", "cuda", "cpu")):
        here = net(SIZES).to(device)
        adam = optim.Adam(here.parameters(), lr=3e-3, eps=1e-4)
        if states:
            here.load_state_dict(states[0])
            adam.load_state_dict(states[1])
        else:
            here.load_state_dict(model.state_dict())
        step = TrainStep(here, F.mse_loss, adam)
        for x, y in data[3 * i : 3 * i + 3]:
            step(x.to(device), y.to(device))
            plain_adam.zero_grad()
            F.mse_loss(plain(x), y).backward()
            plain_adam.step()
        states = here.state_dict(), adam.state_dict()
    torch.testing.assert_close(states[0], plain.state_dict(), rtol=1e-9, atol=1e-9)


def test_copies_of_a_step():
    """deepcopy: of model, loss and optimizer together; the copy trains by itself."""
    twins = DeviceTwins(net(SIZES), F.mse_loss, ADAM)
    twins.run("values", 8, SIZES, 2)
    other = copy.deepcopy(twins.step)
    data = batch("values", 8, SIZES, torch.float64)
    expected = copy.deepcopy(twins.model.state_dict())
    other(*data)
    torch.testing.assert_close(twins.model.state_dict(), expected, rtol=0, atol=0)
    twins.both(*data)
    torch.testing.assert_close(other.model.state_dict(), twins.model.state_dict())
    twins.check()
