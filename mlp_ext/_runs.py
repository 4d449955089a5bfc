"""How a Sequential finds the runs of Linear and activation children that become one fused call.

A run is one or more Linear, each followed by at most one activation, with Identity (or a Dropout
that is one at present) anywhere behind the first.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from . import functional
from ._surroundings import LAYERS, as_usual
from .functional import activation_code

# The kinds of hooks of a module: `_{kind}_hooks`, and `_global_{kind}_hooks` for all modules.
HOOK_KINDS = ("forward_pre", "forward", "backward_pre", "backward")

CODES = {name: activation_code(name) for name in (None, *functional.ACTIVATIONS)}
NO_ACTIVATION = CODES[None]


class Form(NamedTuple):
    """The torch module that an activation's name stands for: its class and its arguments.

    A module of that class is taken for the activation only while its attributes have these values.
    """

    module: type[nn.Module]
    arguments: dict[str, float | str]

    def matches(self, state: dict[str, Any]) -> bool:
        return all(
            type(state.get(name)) in (int, float, str) and state[name] == value
            for name, value in self.arguments.items()
        )


FORMS = {
    "relu": Form(nn.ReLU, {}),
    "gelu": Form(nn.GELU, {"approximate": "none"}),
    "gelu_tanh": Form(nn.GELU, {"approximate": "tanh"}),
    "silu": Form(nn.SiLU, {}),
    "tanh": Form(nn.Tanh, {}),
    "sigmoid": Form(nn.Sigmoid, {}),
    "leaky_relu": Form(nn.LeakyReLU, {"negative_slope": 0.01}),
    "elu": Form(nn.ELU, {"alpha": 1.0}),
    "softplus": Form(nn.Softplus, {"beta": 1.0, "threshold": 20.0}),
}

# A subclass of Tensor (DTensor, a quantized weight, ...) may want to see each function of torch.
_PLAIN = frozenset({Tensor, nn.Parameter})
_PLAIN_OR_NONE = _PLAIN | {type(None)}

# What a child of a Sequential is to a run: one of these, or the code of an activation (> 0).
TORCH_LINEAR, OWN_LINEAR, WITH_ARGUMENTS, IDENTITY, DROPOUT, FOREIGN = 0, -1, -2, -3, -4, -5


class _Roles(dict):
    """Exact type of a child -> its role. Types that are not listed are FOREIGN."""

    def __missing__(self, key: type) -> int:
        return FOREIGN


ROLES = _Roles({nn.Linear: TORCH_LINEAR, nn.Identity: IDENTITY, nn.Dropout: DROPOUT})
for _name, _form in FORMS.items():
    ROLES[_form.module] = WITH_ARGUMENTS if _form.arguments else CODES[_name]


def code_of(child: nn.Module) -> int:
    """Code of the activation that `child` is with its present arguments; NO_ACTIVATION if none."""
    for name, form in FORMS.items():
        if type(child) is form.module and form.matches(child.__dict__):
            return CODES[name]
    return NO_ACTIVATION


def run(
    children: Iterator[nn.Module],
    input: Any,
    stack: Callable[[Any, list, list, list], Any],
    call: Callable[[nn.Module], None] | None = None,
) -> Any:
    """Chain `children` over `input`: one `stack` call for each run, a plain call for all else.

    Nothing is remembered between calls. Every child is looked at anew, after all children before it
    have run, so that no hook, surgery or flag can make a plan stale; this costs 0.3 us a child,
    against 0.8 us for calling it. Callers ask as_usual() before; it asks again after each child
    that runs code of its own. `stack` and `call` are _C.mlp and the child itself; mlp_ext.explain
    passes its own, which makes its answer the one that forward acts on.
    """
    weights: list[Tensor] = []
    biases: list[Tensor | None] = []
    codes: list[int] = []
    activated = True  # whether a further activation has no Linear to join
    for child in children:
        role = ROLES[type(child)]
        if role != FOREIGN:
            state = child.__dict__
            if not (
                state["_forward_hooks"]
                or state["_forward_pre_hooks"]
                or state["_backward_hooks"]
                or state["_backward_pre_hooks"]
                or "forward" in state
                or state.get("_compiled_call_impl") is not None  # child.compile()
            ):
                if role > 0:
                    if not activated:
                        codes[-1] = role
                        activated = True
                        continue
                elif role >= OWN_LINEAR:
                    parameters = state["_parameters"]
                    try:
                        weight, bias = parameters["weight"], parameters["bias"]
                    except KeyError:  # weight_norm, prune, ...: a plain attribute instead
                        pass
                    else:
                        if type(weight) in _PLAIN and type(bias) in _PLAIN_OR_NONE:
                            code = 0
                            if role == OWN_LINEAR:
                                code = activation_code(child.activation)
                            weights.append(weight)
                            biases.append(bias)
                            codes.append(code)
                            activated = code > 0
                            continue
                elif role == WITH_ARGUMENTS:
                    if not activated and (code := code_of(child)) != NO_ACTIVATION:
                        codes[-1] = code
                        activated = True
                        continue
                elif codes and (
                    role == IDENTITY
                    or ((p := state["p"]) == 0 or (not state["training"] and 0 <= p <= 1))
                ):
                    continue
        if codes:
            input = stack(input, weights, biases, codes)
            weights, biases, codes, activated = [], [], [], True
        if call is not None:
            call(child)
            continue
        input = child(input)
        if not as_usual(LAYERS, input):  # also a tuple, a subclass of Tensor: nothing for a stack
            for child in children:
                input = child(input)
                if as_usual(LAYERS, input):
                    break
    if codes:
        input = stack(input, weights, biases, codes)
    return input
