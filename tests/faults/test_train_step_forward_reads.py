"""A forward of the user's own that branches on what the module holds: it is traced again when that
has changed, and a step is the loop's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from train_twins import Twins, make

from mlp_ext._chain import structure_of


class Branching(nn.Module):
    shared = False

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(4, 6, dtype=torch.float64)
        self.fc2 = nn.Linear(6, 6, dtype=torch.float64)
        self.fc3 = nn.Linear(6, 3, dtype=torch.float64)
        self.deep = True
        self.order = ["fc2"]
        self.act = F.relu
        self.counted = 0

    @property
    def name_of_last(self):
        return "tanh" if self.squashes() else "none"

    def squashes(self):
        return self.shared or getattr(self, "late", False)

    def forward(self, x):
        x = self.act(self.fc1(x))
        if self.deep:
            for name in self.order:
                x = self.act(getattr(self, name)(x))
        x = self.fc3(x)
        return torch.tanh(x) if self.name_of_last == "tanh" else x


class Derived(Branching):
    def forward(self, x):
        return super().forward(x)


class ByName(Branching):
    def forward(self, x):
        return Branching.forward(self, x)


def body(model, x):
    return model.fc3(model.act(model.fc2(x) if model.deep else x))


class OfAFunction(Branching):
    def forward(self, x):
        return body(self, self.fc1(x))


class Optional(Branching):
    last = None

    def forward(self, x):
        x = super().forward(x)
        return x if self.last is None else self.last(x)


class Making(Branching):
    def __getattr__(self, name):
        return True if name == "made" else super().__getattr__(name)

    def forward(self, x):
        return super().forward(x) if self.made else self.fc3(self.fc1(x))


CLASSES = {
    "super()": (Derived, lambda model: setattr(model, "deep", False)),
    "a base by name": (ByName, lambda model: setattr(model, "deep", False)),
    "a function of the module": (OfAFunction, lambda model: setattr(model, "deep", False)),
    "None of the class": (Optional, lambda model: setattr(model, "last", torch.tanh)),
    "made when asked for": (Making, lambda model: setattr(model, "made", False)),
}
CHANGES = {
    "flag": lambda model: setattr(model, "deep", False),
    "function": lambda model: setattr(model, "act", F.silu),
    "list": lambda model: model.order.clear(),
    "in a method, of the class": lambda model: setattr(model, "shared", True),
    "by getattr": lambda model: setattr(model, "late", True),
}


def batch():
    return torch.randn(8, 4, dtype=torch.float64), torch.randint(3, (8,))


def check_is_seen(model, change):
    twins = Twins(model, F.cross_entropy, make("SGD", lr=0.5))
    for _ in range(2):
        twins.both(*batch())
    change(twins.model)
    change(twins.plain)
    for _ in range(2):
        twins.both(*batch())
    twins.check()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_is_seen(change):
    check_is_seen(Branching(), change)


@pytest.mark.parametrize("case", CLASSES.values(), ids=CLASSES)
def test_is_seen_through(case):
    kind, change = case
    check_is_seen(kind(), change)


def test_is_seen_by_a_recording():
    from mlp_ext._chain import chain_of
    from mlp_ext._recorded import Recorded

    for change in CHANGES.values():
        model = Branching()
        recorded = Recorded(model, chain_of(model), F.cross_entropy)
        model.counted = 7
        assert recorded.unchanged()
        change(model)
        assert not recorded.unchanged()


def test_what_no_chain_is_is_refused():
    twins = Twins(Branching(), F.cross_entropy, make("SGD", lr=0.5))
    x, y = batch()
    twins.step(x, y)
    twins.model.order.append("fc2")  # a layer twice
    before = [p.detach().clone() for p in twins.model.parameters()]
    with pytest.raises(ValueError, match="shares a parameter"):
        twins.step(x, y)
    assert all(torch.equal(p, b) for p, b in zip(twins.model.parameters(), before, strict=True))


def test_what_it_does_not_read_is_left_alone():
    _, entries = structure_of(Branching())
    names = {name for _, name in entries}
    assert {"deep", "order", "act", "shared", "late"} <= names
    assert not names & {"counted", "training", "fc1", "_modules", "forward"}
