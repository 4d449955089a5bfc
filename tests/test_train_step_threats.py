"""What else a program may do around a TrainStep: other threads, signal handlers, tensors that are
no ordinary ones, data that changes under an epoch. Nothing may crash, hang or be lost."""

import copy
import pickle
import signal
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset
from train_twins import Twins, draw, make, net

import mlp_ext
from mlp_ext import TrainStep
from mlp_ext.data import DataLoader

SIZES = (9, 12, 3)


def made(sizes=SIZES, dtype=torch.float32, optimizer=None):
    model = net(sizes, dtype=dtype)
    optimizer = optimizer or mlp_ext.optim.Adam
    return TrainStep(model, F.cross_entropy, optimizer(model.parameters(), lr=1e-3))


def data_set(n, sizes=SIZES, dtype=torch.float32):
    return TensorDataset(*draw("classes", n, sizes, dtype))


@pytest.fixture
def alarm():
    """alarm(function, seconds): calls it in a signal handler, once."""
    before = signal.getsignal(signal.SIGALRM)

    def at(function, seconds=0.05):
        signal.signal(signal.SIGALRM, lambda *_: function())
        signal.setitimer(signal.ITIMER_REAL, seconds)

    yield at
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_a_data_set_that_shrinks_in_an_epoch(alarm):
    """The epoch goes on with the memory that it began with."""
    dataset, step = data_set(400_000), made()
    loader, shrunk = DataLoader(dataset, 2, shuffle=True), []

    def shrink():
        shrunk.append(True)
        for tensor in dataset.tensors:
            tensor.data = torch.zeros((3, *tensor.shape[1:]), dtype=tensor.dtype)

    alarm(shrink)
    _, losses = step.epoch(loader, batch_losses=True)
    assert shrunk and len(losses) == 200_000 and losses.isfinite().all()


def test_drop_last_that_changes_in_an_epoch(alarm):
    step, loader = made(), DataLoader(data_set(400_001), 2, drop_last=True)
    alarm(lambda: setattr(loader.batch_sampler, "drop_last", False))
    _, losses = step.epoch(loader, batch_losses=True)
    assert len(losses) == 200_000 and losses.isfinite().all()


def test_a_signal_handler_that_calls_the_step(alarm):
    step, loader = made(), DataLoader(data_set(400_000), 2)
    x, y = draw("classes", 4, SIZES, torch.float32)
    losses = []
    alarm(lambda: losses.append(step(x, y)))
    step.epoch(loader)
    assert len(losses) == 1
    assert {int(s["step"]) for s in step.optimizer.state.values()} == {200_001}


@pytest.mark.parametrize("surgery", (False, True))
def test_calls_beside_an_epoch_are_all_counted(surgery):
    """Also where the model's children have changed, and there is a new core."""
    step, loader = made(), DataLoader(data_set(200_000), 2)
    x, y = draw("classes", 4, SIZES, torch.float32)
    thread = threading.Thread(target=step.epoch, args=(loader,))
    thread.start()
    calls = 0
    while thread.is_alive() and calls < 2000:
        if surgery:
            step.model[1] = nn.Tanh()
        step(x, y)
        calls += 1
    thread.join()
    assert calls > 1, "calls wait for the whole epoch"
    assert {int(s["step"]) for s in step.optimizer.state.values()} == {100_000 + calls}


def test_a_change_during_an_epoch_is_seen(alarm):
    step, loader = made(), DataLoader(data_set(400_000), 2)
    alarm(lambda: step.model[1].register_forward_hook(lambda *_: None))
    with pytest.raises(RuntimeError, match="a hook was registered"):
        step.epoch(loader)
    counts = {int(s["step"]) for s in step.optimizer.state.values()}
    assert len(counts) == 1 and 0 < counts.pop() < 200_000


class Wrapped(torch.Tensor):
    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError("no operator of PyTorch is to be called")


def fake(t):
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode().from_tensor(t)


ODD = {
    "fake": fake,
    "zero tensor": lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
    "subclass": lambda t: torch.Tensor._make_subclass(Wrapped, t),
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "nested": lambda t: torch.nested.nested_tensor([t, t], layout=torch.strided),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("place", (0, 1), ids=("input", "target"))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_without_ordinary_memory(odd, place):
    step = made()
    batch = list(draw("classes", 4, SIZES, torch.float32))
    batch[place] = odd(batch[place])
    with pytest.raises(RuntimeError, match="no ordinary tensor|on meta|dense tensor"):
        step(*batch)
    assert not step.optimizer.state


def test_inside_a_transform():
    step = made()
    x, y = draw("classes", 4, SIZES, torch.float32)
    with pytest.raises(RuntimeError, match="no ordinary tensor"):
        torch.func.vmap(lambda x: step(x.expand(4, 9), y))(x)


@pytest.mark.parametrize("place", (0, 1), ids=("input", "target"))
def test_what_wants_a_gradient_is_refused(place):
    """It would get none."""
    model = net(SIZES)
    step = TrainStep(model, F.mse_loss, torch.optim.SGD(model.parameters(), 0.1))
    batch = list(draw("values", 4, SIZES))
    batch[place].requires_grad_()
    with pytest.raises(RuntimeError, match="requires a gradient.*detach"):
        step(*batch)


def test_a_state_that_is_a_plain_dict():
    """A KeyError, as torch's own step raises, and before anything has changed."""
    model = net(SIZES)
    sgd = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    step = TrainStep(model, F.cross_entropy, sgd)
    sgd.state = {}
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(KeyError):
        step(*draw("classes", 4, SIZES))
    assert all(map(torch.equal, before, model.parameters()))


def test_a_forward_set_on_an_instance_later():
    step = made(dtype=torch.float64)
    batch = draw("classes", 4, SIZES)
    step(*batch)
    step.model[1].forward = lambda x: x
    with pytest.raises(ValueError, match="'1': it has a forward of its own"):
        step(*batch)
    del step.model[1].forward
    step(*batch)


def test_options_that_are_lists():
    twins = Twins(net(SIZES), F.mse_loss, make("Adam", lr=3e-3, eps=1e-4))
    for optimizer in (twins.optimizer, twins.plain_optimizer):
        optimizer.param_groups[0]["betas"] = [0.9, 0.999]
    twins.run("values", 8, SIZES, 2)
    for optimizer in (twins.optimizer, twins.plain_optimizer):
        optimizer.param_groups[0]["betas"][0] = 0.1
    twins.run("values", 8, SIZES, 3)
    twins.check()


def test_parameters_that_come_to_share_memory():
    step = made((9, 9, 9, 3))
    step.model[2].weight.data = step.model[0].weight.data
    with pytest.raises(RuntimeError, match="share memory"):
        step(*draw("classes", 4, (9, 3), torch.float32))


@pytest.mark.parametrize("copies", (copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))))
def test_copies_train_apart(copies):
    step = made(dtype=torch.float64)
    batch = draw("classes", 4, SIZES)
    step(*batch)
    other = copies(step)
    assert other.model is not step.model
    assert other.optimizer.param_groups[0]["params"][0] is other.model[0].weight
    assert torch.equal(step(*batch), other(*batch))
    before = step.model[0].weight.clone()
    other(*batch)
    assert torch.equal(step.model[0].weight, before)


def test_what_it_was_made_of_is_read_only():
    step = made()
    for name in ("model", "loss_fn", "optimizer", "clip_grad_norm", "compute_dtype"):
        with pytest.raises(AttributeError):
            setattr(step, name, None)


@pytest.mark.parametrize("layout", ("columns", "spread"))
def test_an_epoch_over_data_of_other_strides(layout):
    x, y = draw("classes", 40, SIZES)
    other = x.t().contiguous().t() if layout == "columns" else torch.stack((x, x), 2)[:, :, 1]
    assert other.stride(1) != 1
    results = []
    for features in (x, other):
        torch.manual_seed(0)
        step = made(dtype=torch.float64)
        results.append(step.epoch(DataLoader(TensorDataset(features, y), 7), batch_losses=True))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_a_removed_hook_leaves_no_trace():
    twins = Twins(net(SIZES), F.mse_loss, make("SGD", lr=0.1))
    twins.model[0].weight.register_hook(lambda g: g).remove()
    twins.run("values", 8, SIZES, 3)
    twins.check()
