"""What the distributed checks and their one-process twins train: nets, data, the loop."""

import torch
from torch import nn

import mlp_ext

LEARNING_RATE = 0.02
GENERATOR = torch.Generator().manual_seed(2)
Y = torch.arange(16) % 3
X = torch.randn(3, 6, generator=GENERATOR)[Y] + torch.randn(16, 6, generator=GENERATOR)

# With an option each that brings in another state or another formula.
OPTIMIZERS: dict[str, dict] = {
    "SGD": {"momentum": 0.9},
    "AdamW": {"amsgrad": True},
    "Adagrad": {"lr_decay": 0.1},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "NAdam": {"decoupled_weight_decay": True},
    "RAdam": {"weight_decay": 0.1},
    "Adamax": {},
}
# Those of the elements; what is to come out are the classes, one-hot.
LOSSES: dict[str, dict] = {
    "MSELoss": {},
    "L1Loss": {},
    "HuberLoss": {"delta": 0.3},
    "SmoothL1Loss": {"beta": 0.3},
    "BCEWithLogitsLoss": {"pos_weight": torch.tensor([1.0, 2.0, 3.0])},
}


class Net(nn.Module):
    """Two stacks and a layer of its own, for the three ways in."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.SiLU())
        self.middle = nn.Linear(8, 8)
        self.head = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x):
        return self.head(torch.relu(self.middle(self.body(x))))


class OurNet(nn.Module):
    """Net in modules of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp_ext.nn.Sequential(
            mlp_ext.nn.LinearReLU(6, 8), mlp_ext.nn.Linear(8, 8, activation="silu")
        )
        self.middle = mlp_ext.nn.Linear(8, 8, activation="relu")
        self.head = mlp_ext.nn.MLP([8, 8, 3], activation="tanh")

    def forward(self, x):
        return self.head(self.middle(self.body(x)))


def net(form: str) -> nn.Module:
    """ "plain", "fused" or "own": the same numbers in each."""
    torch.manual_seed(0)
    if form == "own":
        return OurNet()
    return mlp_ext.fuse(Net()) if form == "fused" else Net()


def optim(form: str):
    return torch.optim if form == "plain" else mlp_ext.optim


def optimizer_of(form: str, parameters, name: str = "Adam", **options):
    """With the options of OPTIMIZERS, unless others are given."""
    options = {"lr": LEARNING_RATE} | (options or OPTIMIZERS.get(name, {}))
    return getattr(optim(form), name)(parameters, **options)


def loss_of(form: str, name: str = "CrossEntropyLoss"):
    """A function of the net's output and the classes."""
    loss_fn = getattr(nn if form == "plain" else mlp_ext.nn, name)(**LOSSES.get(name, {}))
    if name not in LOSSES:
        return loss_fn
    return lambda output, y: loss_fn(output, nn.functional.one_hot(y, 3).to(output.dtype))


def moved(model: nn.Module, rank: int) -> nn.Module:
    """With other values in every process but the first."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(rank)
    return model


def parameters(model: nn.Module) -> list[torch.Tensor]:
    """All parameters, whole; in the order in which every form has them."""
    whole = (getattr(p, "full_tensor", lambda p=p: p)() for p in model.parameters())
    return [p.detach().clone() for p in whole]


def batches(rank: int, world: int, steps: int):
    """This rank's part of the whole batch; the parts of all ranks have one size."""
    for step in range(steps):
        x = X + 0.1 * step
        yield x[rank::world], Y[rank::world]


def train(model, optimizer, form, rank=0, world=1, *, steps=4, clip=None, loss="CrossEntropyLoss"):
    loss_fn = loss_of(form, loss)
    for x, y in batches(rank, world, steps):
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return parameters(model)


def trained_alone(name: str = "Adam", *, steps: int = 4, **options) -> list:
    """The parameters that one process has after training plain PyTorch on the whole batch."""
    model = net("plain")
    optimizer = optimizer_of("plain", model.parameters(), name)
    return train(model, optimizer, "plain", steps=steps, **options)


def of_each_form(check, forms=("fused", "own"), **options):
    """form -> check(rank, world)"""
    return {form: lambda rank, world, f=form: check(f, rank, world, **options) for form in forms}


def named(**checks):
    """ "name-form" -> check(rank, world), of what of_each_form gives for each name."""
    return {f"{name}-{form}": run for name, forms in checks.items() for form, run in forms.items()}
