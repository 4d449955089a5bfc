"""What the loop takes, TrainStep takes: with the loop's results, dtypes, warnings and errors."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from train_twins import Twins, assert_same, make, net, snapshot

from mlp_ext import TrainStep
from mlp_ext.data import DataLoader

ROWS = 8
LOSSES = {
    "mse": F.mse_loss,
    "l1": nn.L1Loss(),
    "huber": nn.HuberLoss(reduction="sum"),
    "smooth_l1": F.smooth_l1_loss,
    "bce_with_logits": nn.BCEWithLogitsLoss(),
}
TARGETS = {
    "float64": lambda y: y.double(),
    "float16": lambda y: y.half(),
    "int64": lambda y: (y > 0.5).long(),
    "uint8": lambda y: (y > 0.5).to(torch.uint8),
    "bool": lambda y: y > 0.5,
    "of one column": lambda y: y[:, :1],
    "flat": lambda y: y[:, 0],
    "a number": lambda y: y[0, 0],
    "too short": lambda y: y[:3],
    "another dimension": lambda y: y[None],
}
CLASSES = {
    "uint8": lambda y: y.to(torch.uint8),
    "int32": lambda y: y.int(),
    "bool": lambda y: y.bool(),
    "float64": lambda y: y.double(),
    "a column": lambda y: y[:, None],
    "too few": lambda y: y[:-1],
    "probabilities in float64": lambda y: F.one_hot(y, 2).double(),
    "probabilities in float16": lambda y: F.one_hot(y, 2).half(),
    "probabilities in int64": lambda y: F.one_hot(y, 2),
    "out of range as uint8": lambda y: (y + 2).to(torch.uint8),
}


def outcome(call, *arguments):
    """(loss, warnings) or the error of one step."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            loss = call(*arguments)
        except Exception as error:
            return error, None
    return loss, {(each.category, str(each.message)) for each in caught}


def compare(twins, x, y):
    """One step of both comes to the same: the loss and its dtype, or the type of the error."""
    before = snapshot(twins.step)
    (ours, our_warnings), (theirs, their_warnings) = (
        outcome(call, x, y) for call in (twins.step, twins.eager)
    )
    if isinstance(theirs, Exception):
        assert type(ours) is type(theirs), f"{ours!r}, in the loop {theirs!r}"
        assert_same(before, snapshot(twins.step))
        return
    assert isinstance(ours, torch.Tensor), f"{ours!r}, in the loop {theirs!r}"
    assert ours.dtype == theirs.dtype and our_warnings == their_warnings
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    twins.check()


@pytest.mark.parametrize("optimizer", ("SGD", "Adam"))
@pytest.mark.parametrize("columns", (1, 2))
@pytest.mark.parametrize("form", TARGETS)
@pytest.mark.parametrize("loss", LOSSES)
def test_targets_of_values(loss, form, columns, optimizer):
    twins = Twins(net((4, 6, columns), dtype=torch.float32), LOSSES[loss], make(optimizer, lr=0.1))
    for _ in range(2):
        compare(twins, torch.randn(ROWS, 4), TARGETS[form](torch.rand(ROWS, columns)))


@pytest.mark.parametrize("smoothing", (0.0, 0.1))
@pytest.mark.parametrize("form", CLASSES)
def test_targets_of_classes(form, smoothing):
    loss = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0]), label_smoothing=smoothing)
    twins = Twins(net((4, 6, 2), dtype=torch.float32), loss, make("SGD", lr=0.1, momentum=0.9))
    for _ in range(2):
        compare(twins, torch.randn(ROWS, 4), CLASSES[form](torch.randint(2, (ROWS,))))


@pytest.mark.parametrize("weight", (torch.ones(3), torch.ones(2).double(), torch.ones(2, 1)))
@pytest.mark.parametrize("loss", (nn.CrossEntropyLoss, nn.BCEWithLogitsLoss))
def test_weights_of_another_shape_or_dtype(loss, weight):
    twins = Twins(net((4, 2), dtype=torch.float32), loss(weight), make("SGD", lr=0.1))
    y = torch.randint(2, (ROWS,)) if loss is nn.CrossEntropyLoss else torch.rand(ROWS, 2)
    compare(twins, torch.randn(ROWS, 4), y)


@pytest.mark.parametrize("shape", ((), (3,), (2, 3), (2, 3, 5)))
@pytest.mark.parametrize("loss", ("mse", "bce_with_logits"))
def test_inputs_of_any_dimension(loss, shape):
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 2))
    twins = Twins(model, LOSSES[loss], make("Adam", lr=0.1))
    for _ in range(2):
        compare(twins, torch.randn(*shape, 4), torch.rand(*shape, 2))
    compare(twins, torch.randn(*shape, 4), torch.rand(2))
    compare(twins, torch.randn(*shape, 3), torch.rand(*shape, 2))


def test_classes_of_an_input_of_three_dimensions():
    """The second dimension of the output is that of the classes."""
    twins = Twins(net((4, 6, 5), dtype=torch.float32), F.cross_entropy, make("SGD", lr=0.1))
    compare(twins, torch.randn(7, 3, 4), torch.randint(3, (7, 5)))
    compare(twins, torch.randn(4), torch.tensor(2))


def test_what_counts_dimensions_refuses_others():
    """BatchNorm1d and Flatten mean something else by three dimensions: not run as if by rows."""
    for layer in (nn.BatchNorm1d(6), nn.Flatten()):
        model = nn.Sequential(nn.Linear(4, 6), layer, nn.Linear(6, 2))
        step = TrainStep(model, F.mse_loss, torch.optim.SGD(model.parameters(), 0.1))
        x, y = torch.randn(3, 6, 4), torch.rand(3, 6, 2)
        before = snapshot(step)
        with pytest.raises(RuntimeError, match="expected \\(batch, 4\\)"):
            step(x, y)
        assert_same(before, snapshot(step))


@pytest.mark.parametrize("form", ("float64", "flat", "int64", "uint8 classes"))
def test_an_epoch_of_such_targets(form):
    columns, loss = (1, F.mse_loss) if form != "uint8 classes" else (3, F.cross_entropy)
    twins = Twins(net((4, 6, columns), dtype=torch.float32), loss, make("SGD", lr=0.1))
    x, y = torch.randn(20, 4), torch.rand(20, 1)
    y = TARGETS[form](y) if form in TARGETS else torch.randint(3, (20,)).to(torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mean = twins.step.epoch(DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8))
        losses = [twins.eager(*batch) for batch in zip(x.split(8), y.split(8), strict=True)]
    assert mean == pytest.approx(torch.stack(losses).double().mean().item(), rel=1e-5)
    twins.check()


def test_batches_that_are_no_pairs():
    model = net((4, 2), dtype=torch.float32)
    step = TrainStep(model, F.mse_loss, torch.optim.SGD(model.parameters(), 0.1))
    x, y = torch.randn(ROWS, 4), torch.rand(ROWS, 2)
    for batch, error, text in (
        ((x, y, y), ValueError, "got 3 parts"),
        ({"x": x, "y": y}, TypeError, "got a dict"),
        (x, TypeError, "got one tensor"),
    ):
        with pytest.raises(error, match=text):
            step.epoch([batch])


def test_a_replaced_head():
    """The old one's parameters stay in the optimizer, as nobody takes parameters out of one."""

    def replace(model, optimizer):
        torch.manual_seed(1)
        model[2] = nn.Linear(6, 2)
        optimizer.add_param_group({"params": list(model[2].parameters())})

    twins = Twins(net((4, 6, 3), dtype=torch.float32), F.cross_entropy, make("Adam", lr=0.1))
    x = torch.randn(ROWS, 4)
    twins.both(x, torch.randint(3, (ROWS,)))
    replace(twins.model, twins.optimizer)
    replace(twins.plain, twins.plain_optimizer)
    for _ in range(2):
        twins.both(x, torch.randint(2, (ROWS,)))
    twins.check()


def test_a_gradient_of_the_shape_that_a_parameter_had():
    """States are made under a gradient of our own; what stood there cannot be set again."""
    twins = Twins(net((4, 6, 3), dtype=torch.float32), F.cross_entropy, make("Adam", lr=0.1))
    x, y = torch.randn(ROWS, 4), torch.randint(3, (ROWS,))
    for model in (twins.model, twins.plain):
        F.cross_entropy(model(x), y).backward()
        torch.manual_seed(1)
        model[2].weight.data, model[2].bias.data = torch.randn(2, 6), torch.randn(2)
    for _ in range(2):
        twins.both(x, torch.randint(2, (ROWS,)))
    twins.check()
    assert twins.model[2].weight.grad is None and twins.model[0].weight.grad is not None


def test_an_optimizer_of_another_model():
    model = net((4, 2))
    with pytest.raises(ValueError, match="no parameter of the model's layers"):
        TrainStep(model, F.mse_loss, torch.optim.SGD(net((4, 2)).parameters(), 0.1))


def test_another_dtype_midway():
    twins = Twins(net((4, 6, 2), dtype=torch.float32), F.mse_loss, make("SGD", lr=0.1))
    x, y = torch.randn(ROWS, 4), torch.rand(ROWS, 2)
    twins.both(x, y)
    for dtype in (torch.float64, torch.float32):
        twins.model.to(dtype)
        twins.plain.to(dtype)
        twins.both(x.to(dtype), y.to(dtype))
        with pytest.raises(RuntimeError, match="an input of dtype .* the weight of '0' is"):
            twins.step(x.to(torch.float32 if dtype == torch.float64 else torch.float64), y)
    twins.check()


def test_nadam_in_float64():
    """Its product of momenta is kept in float32, as torch keeps it."""
    twins = Twins(net((4, 6, 2)), F.mse_loss, make("NAdam", lr=0.05))
    for _ in range(3):
        twins.both(torch.randn(ROWS, 4, dtype=torch.float64), torch.rand(ROWS, 2).double())
    twins.check(1e-13)


def test_a_parameter_listed_twice_later():
    """PyTorch steps it twice."""
    model = net((4, 2), dtype=torch.float32)
    step = TrainStep(model, F.mse_loss, torch.optim.SGD(model.parameters(), 0.1))
    x, y = torch.randn(ROWS, 4), torch.rand(ROWS, 2)
    step(x, y)
    step.optimizer.param_groups[0]["params"].append(model[0].weight)
    before = snapshot(step)
    with pytest.raises(ValueError, match="a parameter twice"):
        step(x, y)
    assert_same(before, snapshot(step))


@pytest.mark.parametrize("rows", (8, 3000))
def test_nan_in_a_probability(rows):
    twins = Twins(
        net((4, 2), dtype=torch.float32, last=nn.Sigmoid()), nn.BCELoss(), make("SGD", lr=0.1)
    )
    x, y = torch.randn(rows, 4), torch.rand(rows, 2)
    compare(twins, x, y)
    x[rows // 2] = float("nan")
    compare(twins, x, y)


@pytest.mark.parametrize("name", ("SGD", "Adam"))
@pytest.mark.parametrize("number", (np.float32, np.float64, torch.tensor), ids=lambda n: n.__name__)
def test_learning_rates_of_other_types(name, number):
    """A tensor may change in place, which is seen."""
    twins = Twins(net((4, 6, 2), dtype=torch.float32), F.mse_loss, make(name, lr=0.1))
    for lr in (0.1, 0.02):
        for optimizer in (twins.optimizer, twins.plain_optimizer):
            optimizer.param_groups[0]["lr"] = number(lr)
        twins.both(torch.randn(ROWS, 4), torch.rand(ROWS, 2))
    if number is torch.tensor:
        for optimizer in (twins.optimizer, twins.plain_optimizer):
            optimizer.param_groups[0]["lr"].fill_(0.5)
    twins.both(torch.randn(ROWS, 4), torch.rand(ROWS, 2))
    twins.check()


@pytest.mark.parametrize("value", ("0.1", None, True, 1j))
def test_learning_rates_that_are_none(value):
    model = net((4, 2), dtype=torch.float32)
    step = TrainStep(model, F.mse_loss, torch.optim.Adam(model.parameters(), 0.1))
    x, y = torch.randn(ROWS, 4), torch.rand(ROWS, 2)
    step(x, y)
    step.optimizer.param_groups[0]["lr"] = value
    before = snapshot(step)
    with pytest.raises(TypeError, match="optimizer's lr"):
        step(x, y)
    assert_same(before, snapshot(step))


@pytest.mark.parametrize("betas", ((1.0, 0.9), (0.9, 1.1), (-0.1, 0.9), (0.9, float("nan"))))
def test_betas_out_of_range_later(betas):
    """PyTorch raises, or computes what the kernels do not."""
    model = net((4, 2), dtype=torch.float32)
    step = TrainStep(model, F.mse_loss, torch.optim.Adam(model.parameters(), 0.1))
    x, y = torch.randn(ROWS, 4), torch.rand(ROWS, 2)
    for _ in range(2):
        before = snapshot(step)
        step.optimizer.param_groups[0]["betas"] = betas
        with pytest.raises(ValueError, match="betas"):
            step(x, y)
        assert_same(before, snapshot(step))
        step.optimizer.param_groups[0]["betas"] = (0.9, 0.999)
        step(x, y)


def test_a_kept_gradient_of_a_parameter_that_is_frozen_later():
    """zero_grad() clears it; the step that leaves gradients does so too."""
    twins = Twins(net((4, 6, 2), dtype=torch.float32), F.mse_loss, make("SGD", lr=0.1))
    x, y = torch.randn(ROWS, 4), torch.rand(ROWS, 2)
    twins.both(x, y, keep_grad=True)
    for model in (twins.model, twins.plain):
        model[0].weight.requires_grad_(False)
    twins.both(x, y, keep_grad=True)
    for p, q in zip(twins.model.parameters(), twins.plain.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad)


def test_a_decay_that_comes_to_divide_by_zero():
    """PyTorch raises ZeroDivisionError in the step in which it does."""
    model = net((4, 2), dtype=torch.float32)
    adagrad = torch.optim.Adagrad(model.parameters(), 0.1)
    step = TrainStep(model, F.mse_loss, adagrad)
    x, y = torch.randn(ROWS, 4), torch.rand(ROWS, 2)
    adagrad.param_groups[0]["lr_decay"] = -0.5  # 1 + (step - 1) * lr_decay is 0 in the third
    step(x, y)
    step(x, y)
    before = snapshot(step)
    with pytest.raises(ValueError, match="lr_decay"):
        step(x, y)
    assert_same(before, snapshot(step))
    with pytest.raises(ZeroDivisionError):
        F.mse_loss(model(x), y).backward()
        adagrad.step()
