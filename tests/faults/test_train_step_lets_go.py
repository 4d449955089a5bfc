"""A live TrainStep holds nothing that others cannot swap, replace, free or collect."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from train_twins import Twins, make, net

from mlp_ext import TrainStep

X, Y = torch.randn(8, 4), torch.randint(3, (8,))


@pytest.fixture
def swapping():
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(before)


def batch_normed():
    return nn.Sequential(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


@pytest.mark.parametrize("name, options", (("SGD", {"momentum": 0.9}), ("Adam", {"amsgrad": True})))
def test_swapped_tensors(swapping, name, options):
    twins = Twins(batch_normed(), F.cross_entropy, make(name, lr=0.1, **options))
    twins.both(X, Y)
    saved = {key: value.clone() for key, value in twins.model.state_dict().items()}
    twins.both(X, Y)
    for model in (twins.model, twins.plain):
        model.load_state_dict(saved)
    twins.both(X, Y)
    for p, q in zip(twins.model.parameters(), twins.plain.parameters(), strict=True):
        torch.manual_seed(p.numel())
        value = torch.randn_like(p)
        for parameter in (p, q):
            torch.utils.swap_tensors(parameter, nn.Parameter(value.clone()))
    for t, u in zip(twins.model.buffers(), twins.plain.buffers(), strict=True):
        for buffer in (t, u):
            torch.utils.swap_tensors(buffer, buffer.clone())
    for optimizer in (twins.optimizer, twins.plain_optimizer):
        for state in optimizer.state.values():
            for tensor in state.values():
                torch.utils.swap_tensors(tensor, tensor.clone())
    for _ in range(2):
        twins.both(X, Y)
    twins.check()


def test_conversions_that_swap(swapping):
    twins = Twins(net((4, 6, 3), dtype=torch.float32), F.cross_entropy, make("SGD", lr=0.1))
    twins.both(X, Y)
    for convert in (nn.Module.double, nn.Module.float, lambda m: m.to("cpu")):
        for model in (twins.model, twins.plain):
            convert(model)
        twins.both(X.to(next(twins.model.parameters()).dtype), Y)
    twins.check()


def test_weights_of_the_loss_are_swapped():
    loss = nn.CrossEntropyLoss(torch.ones(3))
    twins = Twins(net((4, 6, 3), dtype=torch.float32), loss, make("SGD", lr=0.1))
    twins.both(X, Y)
    torch.utils.swap_tensors(loss.weight, torch.tensor([1.0, 5.0, 0.1]))
    twins.both(X, Y)
    twins.check()


def test_assigned_state():
    """Other parameters than the optimizer has: as in the loop, they are not trained."""
    twins = Twins(net((4, 6, 3), dtype=torch.float32), F.cross_entropy, make("Adam", lr=0.1))
    twins.both(X, Y)
    torch.manual_seed(1)
    saved = {key: torch.randn_like(value) for key, value in twins.model.state_dict().items()}
    for model in (twins.model, twins.plain):
        model.load_state_dict({k: v.clone() for k, v in saved.items()}, assign=True)
    twins.both(X, Y)
    twins.both(X, Y)
    for key, value in twins.model.state_dict().items():
        assert torch.equal(value, saved[key]) and torch.equal(twins.plain.state_dict()[key], value)


@pytest.mark.parametrize("steps", (0, 1))
def test_a_cycle_is_collected(steps):
    model = batch_normed()
    gone = weakref.ref(model)
    loss = nn.CrossEntropyLoss(torch.ones(3))
    model.step = TrainStep(model, loss, torch.optim.Adam(model.parameters()))
    for _ in range(steps):
        model.step(X, Y)
    del model
    gc.collect()
    assert gone() is None


def test_a_call_from_a_finalizer_after_the_collection():
    """The collector has emptied the step by then: an error, and no crash."""
    model, told = net((4, 6, 3), dtype=torch.float32), []
    step = TrainStep(model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.1))
    step(X, Y)

    class Last:
        def __init__(self, call):
            self.cycle, self.call = self, call

        def __del__(self):
            try:
                told.append(self.call(X, Y, False))
            except RuntimeError as error:
                told.append(error)

    model.last = Last(step._core.call)
    del step, model
    gc.collect()
    assert len(told) == 1


def test_a_call_within_a_call():
    """From the finalizer of what the step lets go, while it holds its lock."""
    model = net((4, 6, 3), dtype=torch.float32)
    step = TrainStep(model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.1))
    step(X, Y)
    told = []

    def again(_):
        try:
            step(X, Y)
        except RuntimeError as error:
            told.append(str(error))

    old, model[0].bias = model[0].bias, nn.Parameter(torch.zeros(6))
    kept = weakref.ref(old, again)
    step.optimizer.param_groups[0]["params"][1] = model[0].bias
    step.optimizer.state.clear()
    del old
    step(X, Y)
    assert kept() is None and len(told) <= 1
    assert all("within a call of its own" in text for text in told)


@pytest.mark.parametrize("copy_of", (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))))
def test_a_model_that_refers_to_its_step_is_copied(copy_of):
    """The step is copied before the model is complete."""
    model = net((4, 6, 3), dtype=torch.float32)
    model.trainer = [TrainStep(model, F.cross_entropy, torch.optim.Adam(model.parameters()))]
    model.trainer[0](X, Y)
    copied = copy_of(model)
    assert copied.trainer[0].model is copied
    losses = [m.trainer[0](X, Y) for m in (model, copied)]
    assert torch.equal(*losses)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=4)
    epochs = [m.trainer[0].epoch(loader) for m in (model, copy_of(copied))]
    losses = [copied.trainer[0].epoch(loader), *epochs]
    assert losses[0] == losses[1] == losses[2]
