"""Changes of model, loss or optimizer between two calls of a TrainStep are seen."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from train_twins import Twins, make, net

import mlp_ext

SIZES = (7, 9, 6, 3)
SGD = make("SGD", lr=0.05)


def replaced(place, child):
    return lambda twins, model: model.__setitem__(place, child().double())


def transposed_weight(twins, model):
    """The same memory under another shape: only sizes and strides tell."""
    model[2].weight.data = model[2].weight.data.t().contiguous()
    model[2].bias.data = torch.zeros(9, dtype=torch.float64)
    model[4].weight.data = torch.ones(3, 9, dtype=torch.float64)
    model[0].weight.data = model[0].weight.data[:6].clone()
    model[0].bias.data = model[0].bias.data[:6].clone()


CHANGES = {
    "another activation": replaced(1, nn.ELU),
    "a norm for an activation": replaced(3, lambda: nn.LayerNorm(6)),
    "Dropout off, for an activation": replaced(3, lambda: nn.Dropout(0.0)),
    "appended": lambda twins, model: model.append(nn.Tanh()),
    "inserted": lambda twins, model: model.insert(2, nn.BatchNorm1d(9).double()),
    "removed": lambda twins, model: model.__delitem__(3),
    "nested": lambda twins, model: model.__setitem__(1, nn.Sequential(nn.Tanh(), nn.GELU())),
    "new shapes in the old parameters": transposed_weight,
    "new data": lambda twins, model: setattr(
        model[0].weight, "data", torch.full_like(model[0].weight, 0.1)
    ),
    "in place": lambda twins, model: [p.data.mul_(0.5) for p in model.parameters()],
    "no bias": lambda twins, model: setattr(model[2], "bias", None),
    "frozen": lambda twins, model: model[2].requires_grad_(False),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_changes_of_the_model(change):
    def maker(model, plain):  # of parameters that stay, whatever is done to the others
        return torch.optim.SGD([model[0].weight, model[0].bias], lr=0.05)

    twins = Twins(net(SIZES), F.mse_loss, maker)
    twins.run("values", 8, SIZES, 2)
    for model in (twins.model, twins.plain):
        change(twins, model)
        model.zero_grad()
    for _ in range(3):
        twins.run("values", 8, SIZES, 1)
    twins.check()


def test_a_parameter_with_another_name():
    """A new Parameter in the module, and in the optimizer."""
    twins = Twins(net(SIZES), F.mse_loss, make("Adam", lr=3e-3, eps=1e-4))
    twins.run("values", 8, SIZES, 2)
    value = torch.randn(6, 9, dtype=torch.float64)
    for model, optimizer in (
        (twins.model, twins.optimizer),
        (twins.plain, twins.plain_optimizer),
    ):
        model[2].weight = nn.Parameter(value.clone())
        optimizer.param_groups[0]["params"][2] = model[2].weight
    twins.run("values", 8, SIZES, 3)
    twins.check()


def test_an_activation_of_our_linear():
    twins = Twins(mlp_ext.nn.MLP([7, 9, 3], activation="tanh").double(), F.mse_loss, SGD)
    twins.run("values", 8, SIZES, 2)
    linear = mlp_ext.nn.Linear(3, 3, activation="relu").double()
    for model in (twins.model, twins.plain):
        model.append(linear)
    twins.run("values", 8, SIZES, 1)
    linear.activation = "gelu"
    twins.run("values", 8, SIZES, 2)


def test_arguments_of_an_activation():
    """Other than the defaults cannot be run, and then nothing is."""
    twins = Twins(net(SIZES, nn.LeakyReLU), F.mse_loss, SGD)
    twins.run("values", 8, SIZES, 1)
    before = [p.detach().clone() for p in twins.model.parameters()]
    twins.model[1].negative_slope = 0.3
    with pytest.raises(ValueError, match="'1': LeakyReLU"):
        twins.step(torch.randn(8, 7, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64))
    assert all(map(torch.equal, before, twins.model.parameters()))
    twins.model[1].negative_slope = 0.01
    twins.run("values", 8, SIZES, 1)
    twins.check()


def test_what_cannot_be_run_is_refused_and_the_next_call_goes_on():
    twins = Twins(net(SIZES), F.mse_loss, SGD)
    twins.run("values", 8, SIZES, 1)
    batch = torch.randn(8, 7, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)
    child = twins.model[3]
    twins.model[3] = nn.Softmax(1)
    for _ in range(2):
        with pytest.raises(ValueError, match="'3': Softmax is not supported"):
            twins.step(*batch)
    twins.model[3] = child
    twins.run("values", 8, SIZES, 1)
    twins.check()


def test_options_of_the_loss():
    loss = nn.CrossEntropyLoss(torch.ones(3, dtype=torch.float64))
    twins = Twins(net(SIZES), loss, SGD)
    twins.run("classes", 8, SIZES, 1)
    loss.label_smoothing = 0.3
    twins.run("classes", 8, SIZES, 1)
    loss.reduction = "sum"
    loss.ignore_index = 1
    twins.run("classes", 8, SIZES, 1)
    loss.weight = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    twins.run("classes", 8, SIZES, 1)
    loss.weight.mul_(2)
    twins.run("classes", 8, SIZES, 1)
    twins.check()


def test_a_schedule_of_every_step():
    """A learning rate that is new at each call."""
    twins = Twins(net(SIZES), F.mse_loss, make("AdamW", lr=3e-3, eps=1e-4))
    for i in range(20):
        for optimizer in (twins.optimizer, twins.plain_optimizer):
            optimizer.param_groups[0]["lr"] = 1e-3 * (i + 1)
        twins.run("values", 8, SIZES, 1)
    twins.check()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("Adam", {"betas": [(0.9, 0.99), (0.5, 0.9), (0.0, 0.9)], "weight_decay": [0.0, 0.1, 0.2]}),
        ("SGD", {"momentum": [0.9, 0.0, 0.5], "dampening": [0.0, 0.3, 0.1]}),
        (
            "RMSprop",
            {"alpha": [0.9, 0.5, 0.99], "momentum": [0.5, 0.9, 0.1], "eps": [1e-4, 1.0, 2]},
        ),
        ("NAdam", {"momentum_decay": [0.004, 0.1, 0.0]}),
        ("Adagrad", {"lr_decay": [0.0, 0.1, 0.5]}),
    ],
)
def test_floats_of_one_group_change(name, values):
    """The rest of the plan stands; momentum that comes back to SGD finds its buffer."""
    options = {"lr": 0.01} | ({} if name == "SGD" else {"eps": 1e-4})
    options |= {option: changes[0] for option, changes in values.items()}

    def two_groups(model, plain):
        params = list(model.parameters())
        halves = [{"params": params[:2]}, {"params": params[2:], "lr": 0.02}]
        return getattr(torch.optim if plain else mlp_ext.optim, name)(halves, **options)

    twins = Twins(net(SIZES), F.mse_loss, two_groups)
    for turn in range(9):
        for optimizer in (twins.optimizer, twins.plain_optimizer):
            for option, changes in values.items():
                optimizer.param_groups[turn // 3 % 2][option] = changes[turn % len(changes)]
        twins.run("values", 8, SIZES, 2)
    twins.check()


def test_another_isa():
    isas = mlp_ext.cpu.supported_isas()
    twins = Twins(net(SIZES), F.mse_loss, SGD)
    for name in (*isas, *isas):
        with mlp_ext.cpu.use_isa(name):
            twins.run("values", 8, SIZES, 1)
    twins.check()


def test_batches_of_all_sizes():
    twins = Twins(net(SIZES), F.mse_loss, SGD)
    for rows in (8, 3, 300, 1, 8, 301, 2, 8):
        twins.run("values", rows, SIZES, 1)
    twins.check()


def test_no_warning_of_a_scheduler(recwarn):
    twins = Twins(net(SIZES), F.mse_loss, SGD)
    twins.run("values", 8, SIZES, 1)
    torch.optim.lr_scheduler.StepLR(twins.optimizer, 1).step()
    assert not [w for w in recwarn if "lr_scheduler" in str(w.message)]
