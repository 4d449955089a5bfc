"""Models and batches of a case: drawn as a tree of tuples, built for PyTorch or for mlp_ext."""

import torch
import torch.nn.functional as F
from torch import nn

import mlp_ext
from mlp_ext import functional

WIDTHS = (1, 2, 3, 5, 7, 8, 13, 16, 17, 24, 31, 32, 33, 40)
BATCHES = (0, 1, 2, 7, 64, 65)
ACTIVATIONS = {
    "relu": (nn.ReLU, F.relu),
    "gelu": (nn.GELU, F.gelu),
    "gelu_tanh": (lambda: nn.GELU("tanh"), lambda x: F.gelu(x, approximate="tanh")),
    "silu": (nn.SiLU, F.silu),
    "tanh": (nn.Tanh, torch.tanh),
    "sigmoid": (nn.Sigmoid, torch.sigmoid),
    "leaky_relu": (nn.LeakyReLU, F.leaky_relu),
    "elu": (nn.ELU, F.elu),
    "softplus": (nn.Softplus, F.softplus),
}
FOREIGN = {
    "softsign": nn.Softsign,
    "prelu": nn.PReLU,
    "leaky_steep": lambda: nn.LeakyReLU(0.3),
    "elu_2": lambda: nn.ELU(2.0),
}


def draw_model(r, form):
    """{"sizes", "body": a tuple of layers, "kind", "flatten"}; form: how mlp_ext is to be used."""
    depth = r.choice((1, 1, 2, 2, 2, 3, 4))
    sizes = [r.choice(WIDTHS) for _ in range(depth + 1)]
    plain = form in ("functional", "mlp")
    name = r.choice(list(ACTIVATIONS) + ["relu"] * 6)
    body = []
    for i, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
        if not plain and r.random() < 0.1:
            body.append(("norm", r.choice(("batch", "layer")), fan_in))
        body.append(("linear", fan_in, fan_out, r.random() < 0.9))
        if plain:
            body.append(("act", name if i < depth - 1 else None))
            continue
        if r.random() < 0.12:
            body.append(("norm", r.choice(("batch", "layer")), fan_out))
        if i < depth - 1 or r.random() < 0.15:
            kinds = [*ACTIVATIONS, *FOREIGN] if r.random() < 0.4 else [name]
            body.append(("act", r.choice(kinds)))
        if r.random() < 0.08:
            body.append((r.choice(("identity", "dropout0", "dropout")),))
    kind = "sequential" if not plain and form != "MLP" else form
    if kind == "sequential":
        kind = r.choice(["sequential"] * 5 + ["nested", "nested", "forward", "residual", "shared"])
    return {
        "sizes": sizes,
        "body": body,
        "kind": kind,
        "flatten": r.random() < 0.06 and not plain and form != "MLP",
        "frozen": r.random() < 0.08,
    }


class Forward(nn.Module):
    """A forward of its own; activations as functions where they are known ones."""

    def __init__(self, layers, names):
        super().__init__()
        self.layers, self.names = nn.ModuleList(layers), names

    def forward(self, x):
        for layer, name in zip(self.layers, self.names, strict=True):
            x = ACTIVATIONS[name][1](x) if name in ACTIVATIONS else layer(x)
        return x


class Residual(nn.Module):
    def __init__(self, first, body):
        super().__init__()
        self.first, self.body = first, body

    def forward(self, x):
        x = self.first(x)
        return x + self.body(x)


class Handwritten(nn.Module):
    """nn.Linear as a holder of parameters; the functions of mlp_ext, or PyTorch's."""

    def __init__(self, linears, names, form, ours):
        super().__init__()
        self.linears = nn.ModuleList(linears)
        self.names, self.form, self.ours = names, form, ours

    def forward(self, x):
        weights, biases = [m.weight for m in self.linears], [m.bias for m in self.linears]
        if not self.ours:
            for weight, bias, name in zip(weights, biases, self.names, strict=True):
                x = F.linear(x, weight, bias)
                x = x if name is None else ACTIVATIONS[name][1](x)
            return x
        if self.form == "mlp":
            names = {"activation": self.names[0], "final_activation": self.names[-1]}
            return functional.mlp(x, weights, biases, **names)
        for weight, bias, name in zip(weights, biases, self.names, strict=True):
            if name == "relu":
                x = functional.linear_relu(x, weight, bias)
            else:
                x = functional.linear(x, weight, bias, activation=name)
        return x


def _layer(item, ours, form):
    kind = item[0]
    own = ours and form in ("own", "merged")
    if kind == "linear":
        return (mlp_ext.nn.Linear if own else nn.Linear)(*item[1:])
    if kind == "act":
        return (ACTIVATIONS[item[1]][0] if item[1] in ACTIVATIONS else FOREIGN[item[1]])()
    if kind == "norm":
        return (nn.BatchNorm1d if item[1] == "batch" else nn.LayerNorm)(item[2])
    if kind == "identity":
        return nn.Identity()
    return nn.Dropout(0.0 if kind == "dropout0" else 0.4)


def _layers(body, ours, form):
    """The modules; "merged": an activation of ours in the Linear before it."""
    if not (ours and form == "merged"):
        return [_layer(item, ours, form) for item in body]
    layers, i = [], 0
    while i < len(body):
        item, following = body[i], body[i + 1] if i + 1 < len(body) else (None,)
        i += 1
        if item[0] == "linear" and following[0] == "act" and following[1] in ACTIVATIONS:
            i += 1
            if following[1] == "relu":
                layers.append(mlp_ext.nn.LinearReLU(*item[1:]))
            else:
                layers.append(mlp_ext.nn.Linear(*item[1:], activation=following[1]))
        else:
            layers.append(_layer(item, ours, form))
    return layers


def build_model(spec, form, ours):
    """form "fuse": plain modules, fused; "own", "merged": modules of ours; "plain": as they are."""
    body, kind, sizes = spec["body"], spec["kind"], spec["sizes"]
    sequential = mlp_ext.nn.Sequential if ours and form in ("own", "merged") else nn.Sequential
    if kind == "MLP" and ours:
        return mlp_ext.nn.MLP(sizes, activation="relu", bias=True)
    if kind == "MLP":
        items = []
        for i, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
            items += [nn.ReLU()] * (i > 0) + [nn.Linear(fan_in, fan_out)]
        return nn.Sequential(*items)
    if kind in ("functional", "mlp"):
        linears = [nn.Linear(*item[1:]) for item in body if item[0] == "linear"]
        names = [item[1] for item in body if item[0] == "act"]
        return Handwritten(linears, names, kind, ours)
    layers = _layers(body, ours, form)
    flatten = [nn.Flatten()] if spec["flatten"] else []
    if kind == "sequential":
        model = sequential(*flatten, *layers)
    elif kind == "nested":
        half = len(layers) // 2
        model = sequential(*flatten, sequential(*layers[:half]), nn.Sequential(*layers[half:]))
    elif kind == "shared" and form != "merged" and len(sizes) > 2 and sizes[-1] == sizes[-2]:
        model = sequential(*flatten, *layers, layers[-1])
    elif kind == "residual":
        width = sizes[-1]
        body = sequential(*_layers([("linear", width, width, True)], ours, form))
        model = Residual(sequential(*flatten, *layers), body)
    elif kind == "forward" and not (ours and form == "merged"):
        names = [None] * len(flatten) + [i[1] if i[0] == "act" else None for i in spec["body"]]
        model = Forward(flatten + layers, names)
    else:
        model = sequential(*flatten, *layers)
    if spec["frozen"]:
        next(model.parameters()).requires_grad_(False)
    if ours and form == "fuse":
        mlp_ext.fuse(model)
    return model


LAYOUTS = ("plain",) * 6 + ("transposed", "spread", "expanded", "negative", "offset")


def lay_out(x, layout):
    if layout == "transposed" and x.dim() > 1:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "spread":
        return torch.stack((x, x), -1)[..., 1]
    if layout == "expanded" and x.dim() > 1 and x.shape[0]:
        return x[:1].expand(x.shape)
    if layout == "negative":
        return torch._neg_view(-x)
    if layout == "offset":
        return torch.cat((x.flatten(), x.new_zeros(3)))[: x.numel()].view(x.shape)
    return x


def draw_batch(r, model, entry):
    """Rows, the dimensions between them and the features, and the layout."""
    rows = r.choice(BATCHES if r.random() < 0.5 else (2, 7, 64))
    middle = ()
    if not model["flatten"] and entry not in ("epoch",) and r.random() < 0.08:
        middle = (r.choice((1, 3)),)
    layout = r.choice(LAYOUTS)
    if any(part[:2] == ("norm", "batch") for part in model["body"]):
        # Of two rows it makes 1 and -1, of equal rows 0: what follows is rounding, of which ReLU
        # and Adamax make much.
        rows = 3 if rows == 2 else rows
        layout = "plain" if layout == "expanded" else layout
    return {
        "rows": rows,
        "middle": middle,
        "layout": layout,
        "x_grad": r.random() < 0.05 and entry == "loop",
    }


def make_x(spec, model, dtype, generator):
    width = model["sizes"][0]
    inner = (width,)
    if model["flatten"] and width % 2 == 0:
        inner = (2, width // 2)
    shape = (spec["rows"], *spec["middle"], *inner)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
