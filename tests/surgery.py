"""A model with every kind of run, and what a user may do to it: SURGERY, by name."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune


def build() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(),
        nn.Linear(8, 8), nn.Dropout(0.3), nn.LeakyReLU(),
        nn.Linear(8, 8), nn.Identity(), nn.GELU("tanh"),
        nn.BatchNorm1d(8), nn.Linear(8, 4), nn.ELU(), nn.Softplus(), nn.Linear(4, 3),
    ).double()  # fmt: skip


def batch(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=dtype)


class Scale(nn.Module):
    def forward(self, input):
        return 3 * input


class Doubled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


def set_p(model, p):
    model[3].p = p


def swap_forward(child, forward):
    child.forward = forward


def alias(model):
    model[5].weight = model[2].weight


def freeze(model):
    model[0].requires_grad_(False)
    model[5].weight.requires_grad_(False)


def assign(model):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["2.weight"] *= 1.5
    model.load_state_dict(state, assign=True)


def replace_hooks(model):
    model[2]._forward_hooks = type(model[2]._forward_hooks)()
    model[2].register_forward_hook(lambda module, args, output: output + 1)


def add_and_remove_hook(model):
    model[2].register_forward_hook(lambda module, args, output: output + 1).remove()


def move_parameter_in_a_hook(model):
    def hook(module, args):
        model[12].weight = nn.Parameter(torch.full_like(model[12].weight, 0.25))

    model[8].register_forward_pre_hook(hook)


def swap_weight_attribute(model):
    weight = model[2].weight.detach()
    del model[2].weight
    model[2].weight = 2 * weight


def own_class(model):
    model[2].__class__ = Doubled


SURGERY: dict[str, Callable[[nn.Module], object]] = {
    "nothing": lambda m: None,
    "replace a linear": lambda m: m.__setitem__(2, nn.Linear(8, 8, bias=False).double()),
    "replace an activation": lambda m: m.__setitem__(1, nn.Tanh()),
    "replace by name": lambda m: setattr(m, "4", nn.Sigmoid()),
    "foreign activation": lambda m: m.__setitem__(1, nn.Hardswish()),
    "foreign child": lambda m: m.__setitem__(1, Scale()),
    "subclass": lambda m: m.__setitem__(2, Doubled(8, 8).double()),
    "change the class": own_class,
    "delete an activation": lambda m: m.__delitem__(1),
    "delete a slice": lambda m: m.__delitem__(slice(1, 4)),
    "append": lambda m: m.append(nn.Tanh()),
    "insert": lambda m: m.insert(1, nn.Linear(8, 8).double()),
    "extend": lambda m: m.extend([nn.Linear(3, 3).double(), nn.SiLU()]),
    "iadd": lambda m: m.__iadd__(nn.Sequential(nn.SiLU())),
    "nest": lambda m: m.append(nn.Sequential(nn.Linear(3, 2).double(), nn.ReLU())),
    "two activations": lambda m: m.insert(1, nn.Sigmoid()),
    "activation first": lambda m: m.insert(0, nn.Sigmoid()),
    "identity first": lambda m: m.insert(0, nn.Identity()),
    "same linear twice": lambda m: m.insert(2, m[2]),
    "same activation twice": lambda m: m.__setitem__(4, m[1]),
    "negative_slope": lambda m: setattr(m[4], "negative_slope", 0.3),
    "negative_slope integer": lambda m: setattr(m[4], "negative_slope", 1),
    "negative_slope tensor": lambda m: setattr(m[4], "negative_slope", torch.tensor(0.01)),
    "alpha": lambda m: setattr(m[10], "alpha", 2.0),
    "beta": lambda m: setattr(m[11], "beta", 3),
    "threshold": lambda m: setattr(m[11], "threshold", 0.5),
    "approximate": lambda m: setattr(m[7], "approximate", "none"),
    "inplace": lambda m: [setattr(m[i], "inplace", True) for i in (1, 4, 10)],
    "p=0": lambda m: set_p(m, 0),
    "p=0.9": lambda m: set_p(m, 0.9),
    "p=1": lambda m: set_p(m, 1.0),
    "dropout in place": lambda m: setattr(m[3], "inplace", True),
    "one child in eval": lambda m: m[3].eval(),
    "eval": lambda m: m.eval(),
    "eval, one child in train": lambda m: m.eval()[3].train(),
    "forward of a linear": lambda m: swap_forward(m[2], lambda x: x.sin()),
    "forward of an activation": lambda m: swap_forward(m[1], lambda x: x.sin()),
    "forward of an identity": lambda m: swap_forward(m[6], lambda x: x.sin()),
    "forward of the whole": lambda m: swap_forward(m, lambda x: x.sin()),
    "compile of a linear": lambda m: m[2].compile(backend="eager"),
    "compile of an activation": lambda m: m[4].compile(backend="eager"),
    "hook": lambda m: m[2].register_forward_hook(lambda c, args, out: out + 1),
    "hook on an activation": lambda m: m[1].register_forward_hook(lambda c, args, out: out + 1),
    "hook on an identity": lambda m: m[6].register_forward_hook(lambda c, args, out: out + 1),
    "hook on the whole": lambda m: m.register_forward_hook(lambda c, args, out: out + 1),
    "pre-hook": lambda m: m[2].register_forward_pre_hook(lambda c, args: (args[0] * 2,)),
    "backward hook": lambda m: m[2].register_full_backward_hook(lambda c, gi, go: (gi[0] * 2,)),
    "backward pre-hook": lambda m: m[1].register_full_backward_pre_hook(lambda c, go: (go[0] * 2,)),
    "replaced hooks": replace_hooks,
    "removed hook": add_and_remove_hook,
    "hook that changes a later child": move_parameter_in_a_hook,
    "weight_norm": lambda m: parametrizations.weight_norm(m[2]),
    "old weight_norm": lambda m: nn.utils.weight_norm(m[2]),
    "spectral_norm": lambda m: parametrizations.spectral_norm(m[2]),
    "parametrized bias": lambda m: parametrize.register_parametrization(m[2], "bias", Scale()),
    "prune": lambda m: prune.l1_unstructured(m[5], "weight", 0.5),
    "prune the bias": lambda m: prune.l1_unstructured(m[5], "bias", 0.5),
    "weight as an attribute": swap_weight_attribute,
    "no bias": lambda m: m[2].register_parameter("bias", None),
    "new parameter": lambda m: setattr(m[2], "weight", nn.Parameter(m[2].weight * 2)),
    "data": lambda m: m[2].weight.data.mul_(2),
    "tied": alias,
    "frozen": freeze,
    "frozen and thawed": lambda m: m.requires_grad_(False).requires_grad_(True),
    "load_state_dict(assign=True)": assign,
    "apply": lambda m: m.apply(lambda c: isinstance(c, nn.Linear) and nn.init.ones_(c.bias)),
}
