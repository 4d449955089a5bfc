"""A model as a chain of layers, for mlp_ext.TrainStep: read from containers, or traced by torch.fx.

What cannot be run faithfully is refused with a ValueError that names the submodule and the reason.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules import module as _torch_module

from . import nn as own_nn
from ._chain_tensors import check_norm, check_parameters, refusal
from ._chain_trace import attributes_read, trace
from ._runs import CODES, FORMS, HOOK_KINDS, NO_ACTIVATION, code_of
from .functional import activation_code

_OWN_LINEARS = (own_nn.Linear, own_nn.LinearActivation, own_nn.LinearReLU)
_LINEARS = (nn.Linear, *_OWN_LINEARS)
_FORM_TYPES = {form.module for form in FORMS.values()}
_NORMS = {nn.BatchNorm1d: "batch_norm", nn.LayerNorm: "layer_norm"}
_LEAVES = (*_LINEARS, *_NORMS, *_FORM_TYPES, nn.Identity, nn.Flatten, nn.Dropout)
_FORWARDS = {kind: kind.forward for kind in (*_LEAVES, nn.Sequential, own_nn.Sequential)}

# What a forward of the user's own may call between its layers, at the default arguments.
_FUNCTIONS: dict[Any, str] = {
    torch.relu: "relu",
    F.relu: "relu",
    "relu": "relu",
    torch.tanh: "tanh",
    F.tanh: "tanh",
    "tanh": "tanh",
    torch.sigmoid: "sigmoid",
    F.sigmoid: "sigmoid",
    "sigmoid": "sigmoid",
    F.gelu: "gelu",
    F.silu: "silu",
    F.leaky_relu: "leaky_relu",
    F.elu: "elu",
    F.softplus: "softplus",
}

# F.relu and others hand torch.fx their default arguments by name.
_DEFAULTS: dict[str, Any] = {
    "inplace": False,
    "approximate": "none",
    "negative_slope": 0.01,
    "alpha": 1.0,
}


@dataclass
class Layer:
    """One module with parameters, or none, and what follows it: an activation, then a Dropout."""

    path: str
    kind: str  # of csrc/step/train_layer.h: "linear", "batch_norm", "layer_norm", "map"
    module: nn.Module | None
    features: tuple[int, int] | None  # in, out; None: as many as before
    code: int = NO_ACTIVATION
    dropout: nn.Dropout | None = None

    def parameters(self) -> list[nn.Parameter]:
        return [] if self.module is None else list(self.module.parameters())


@dataclass
class Chain:
    layers: list[Layer]
    flattens: bool  # the input (batch, ...) to (batch, features) first
    flattens_later: bool = False  # what has two dimensions, if the input has

    @property
    def input_form(self) -> str:
        """What an input is, in the words of csrc/bindings/train_step.h."""
        if self.flattens:
            return "flattened"
        is_by_row = all(layer.kind != "batch_norm" for layer in self.layers)
        return "any rows" if is_by_row and not self.flattens_later else "matrix"

    @property
    def columns(self) -> int:
        """Features of the output."""
        return next(layer.features[1] for layer in reversed(self.layers) if layer.features)

    @property
    def device(self) -> torch.device:
        return next(p.device for layer in self.layers for p in layer.parameters())


def chain_of(model: nn.Module, bf16: bool = False) -> Chain:
    """The layers that a call of `model` runs, in order. bf16: with products of bfloat16."""
    chain = Chain([], False)
    for path, step in _steps(model, ""):
        _append(chain, path, step)
    if not any(layer.kind == "linear" for layer in chain.layers):
        raise refusal("", "it has no Linear")
    _check_widths(chain)
    _check_sharing(chain)
    chain.layers = list(_split(chain.layers, joins=not bf16))
    return chain


def _split(layers: list[Layer], joins: bool) -> Iterator[Layer]:
    """The compiled half takes a Dropout behind a Linear only if another Linear follows and both are
    of one dtype (joins)."""
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        dropout = layer.dropout
        runs_on = joins and following is not None and following.kind == "linear"
        if layer.kind == "linear" and dropout is not None and not runs_on:
            layer.dropout = None
            yield layer
            yield Layer(layer.path, "map", None, None, dropout=dropout)
        else:
            yield layer


def _steps(module: nn.Module, path: str) -> Iterator[tuple[str, Any]]:
    """(path, a leaf module, the name of an activation or "flatten") in the order of the calls."""
    _check_plain(module, path)
    kind = type(module)
    if kind in _LEAVES:
        yield path, module
    elif isinstance(module, nn.Sequential) and kind.forward in (
        _FORWARDS[nn.Sequential],
        _FORWARDS[own_nn.Sequential],
    ):
        for name, child in module._modules.items():
            yield from _steps(child, _join(path, name))
    elif isinstance(module, _LEAVES) or kind.__module__.startswith("torch."):
        advice = "; give TrainStep the module in it, and a process_group"
        reason = f"{kind.__name__} is not supported"
        raise refusal(path, reason + advice * issubclass(kind, nn.parallel.DistributedDataParallel))
    else:
        yield from _traced_steps(module, path)


def _traced_steps(module: nn.Module, path: str) -> Iterator[tuple[str, Any]]:
    """The steps of a forward of the user's own, if it is a chain."""
    nodes = list(trace(module, path, True).nodes)
    others = trace(module, path, False).nodes
    if [node.format_node() for node in nodes] != [node.format_node() for node in others]:
        raise refusal(path, "what its forward calls depends on `training`")
    inputs = [node for node in nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise refusal(path, f"its forward takes {len(inputs)} inputs; one is supported")
    current = inputs[0]
    for node in nodes[1:]:
        if node.op == "output":
            if node.args != (current,):
                raise refusal(path, "its forward returns more than the end of its chain")
            return
        if node.op == "get_attr":
            what = " and ".join(_name_of(user) for user in node.users)
            raise refusal(path, f"its forward calls {what} with a tensor of its own")
        if node.op == "placeholder" or node.all_input_nodes != [current] or len(current.users) > 1:
            raise refusal(path, f"its forward is no chain of layers (at {node.format_node()})")
        yield from _traced_step(module, path, node)
        current = node


def _traced_step(module: nn.Module, path: str, node: fx.Node) -> Iterator[tuple[str, Any]]:
    rest = {k: v for k, v in node.kwargs.items() if k not in _DEFAULTS or v != _DEFAULTS[k]}
    if node.op == "call_module" and len(node.args) == 1 and not node.kwargs:
        name = str(node.target)
        yield from _steps(module.get_submodule(name), _join(path, name))
    elif node.target in _FUNCTIONS and len(node.args) == 1 and not rest:
        yield path, _FUNCTIONS[node.target]
    elif node.target in (torch.flatten, "flatten") and node.args[1:] == (1,) and not node.kwargs:
        yield path, "flatten"
    else:
        raise refusal(path, f"its forward calls {_name_of(node)}, which is not supported")


def _name_of(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _append(chain: Chain, path: str, step: Any) -> None:
    layers = chain.layers
    if isinstance(step, _LINEARS):
        check_parameters(step, path)
        features = (step.in_features, step.out_features)
        code = activation_code(getattr(step, "activation", None))
        layers.append(Layer(path, "linear", step, features, code))
    elif type(step) in _NORMS:
        check_norm(step, path)
        layers.append(Layer(path, _NORMS[type(step)], step, (_width(step),) * 2))
    elif step == "flatten" or isinstance(step, nn.Flatten):
        if not isinstance(step, str) and (step.start_dim, step.end_dim) != (1, -1):
            raise refusal(path, "Flatten with other arguments than start_dim=1, end_dim=-1")
        # What acts on single elements may as well come behind it; a Linear gives two dimensions.
        if all(layer.features is None for layer in layers):
            chain.flattens = True
        else:
            chain.flattens_later = True
    elif isinstance(step, nn.Dropout):
        if not layers or layers[-1].dropout is not None:
            layers.append(Layer(path, "map", None, None))
        layers[-1].dropout = step
    elif not isinstance(step, nn.Identity):
        code = CODES[step] if isinstance(step, str) else _code_of(step, path)
        if not layers or layers[-1].code != NO_ACTIVATION or layers[-1].dropout is not None:
            layers.append(Layer(path, "map", None, None))
        layers[-1].code = code


def _width(norm: nn.BatchNorm1d | nn.LayerNorm) -> int:
    return norm.num_features if isinstance(norm, nn.BatchNorm1d) else norm.normalized_shape[0]


def _code_of(module: nn.Module, path: str) -> int:
    code = code_of(module)
    if code == NO_ACTIVATION:
        raise refusal(path, f"{module} with other than its default arguments is not supported")
    return code


def _check_plain(module: nn.Module, path: str) -> None:
    """No hook, and no forward but that of its class."""
    for kind in HOOK_KINDS:
        if getattr(module, f"_{kind}_hooks") or getattr(_torch_module, f"_global_{kind}_hooks"):
            raise refusal(path, f"a {kind.replace('_', ' ')} hook is registered on it")
    if "forward" in module.__dict__:
        raise refusal(path, "it has a forward of its own, set on the instance")
    if type(module).__call__ is not nn.Module.__call__:
        raise refusal(path, f"{type(module).__name__} has a __call__ of its own")
    expected = _FORWARDS.get(type(module))
    if expected is not None and type(module).forward is not expected:
        raise refusal(path, f"the forward of {type(module).__name__} is patched")


def _check_widths(chain: Chain) -> None:
    width = None
    for layer in chain.layers:
        if layer.features is None:
            continue
        if width is not None and layer.features[0] != width:
            what = f"it takes {layer.features[0]} features, but what comes before gives {width}"
            raise refusal(layer.path, what)
        width = layer.features[1]


def _check_sharing(chain: Chain) -> None:
    seen: dict[int, str] = {}
    dtypes, devices = set(), set()
    for layer in chain.layers:
        for parameter in layer.parameters():
            dtypes.add(parameter.dtype)
            devices.add(parameter.device)
            place = parameter.data_ptr()
            if parameter.numel() and place in seen:
                raise refusal(layer.path, f"it shares a parameter with {seen[place]!r}")
            seen[place] = layer.path
    if len(dtypes) > 1:
        raise refusal("", f"its parameters have different dtypes: {sorted(map(str, dtypes))}")
    if len(devices) > 1:
        raise refusal("", f"its parameters are on different devices: {sorted(map(str, devices))}")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def structure_of(model: nn.Module) -> tuple[list[dict | list], list[tuple[dict, str]]]:
    """What may make another chain if it changes: the dictionaries of children, and of the
    attributes of layers that have some; and of modules with a forward of their own the entries that
    it may read, with the lists and dictionaries that are in them."""
    found: list[dict | list] = []
    entries: list[tuple[dict, str]] = []
    for module in model.modules():
        found.append(module._modules)
        form = type(module)
        if form in (*_OWN_LINEARS, nn.Flatten) or (form in _FORM_TYPES and form is not nn.ReLU):
            found.append(module.__dict__)
        elif form not in _FORWARDS and not form.__module__.startswith("torch."):
            for name in attributes_read(module):
                entries.append((module.__dict__, name))
                value = module.__dict__.get(name)
                if type(value) in (dict, list):
                    found.append(value)
    return found, entries
