"""torch.nn's modules with the same parameters, keys and results; Linear + activation as one call.

    Linear                 nn.Linear
    LinearActivation, ...  a Linear with an activation of its own, of _linear.py
    Sequential, MLP        an nn.Sequential in which a run of Linear and activation children is one
                           call, and one autograd node
    CrossEntropyLoss, ...  the losses of _loss_modules.py
    utils.clip_grad_norm_  nn.utils.clip_grad_norm_

Everything that holds for the torch class holds here (initialisation, state_dict, hooks, pickling,
parametrizations, surgery); where the fused call could differ, the children run one by one.
"""

import operator
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.compiler import is_compiling

from .._load import _C
from .._loss_modules import (
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    HuberLoss,
    L1Loss,
    MSELoss,
    SmoothL1Loss,
)
from .._runs import FORMS, run
from .._surroundings import LAYERS, as_usual, watch_class
from ..functional import activation_code
from . import utils
from ._linear import Linear, LinearActivation, LinearReLU

__all__ = [
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "HuberLoss",
    "L1Loss",
    "Linear",
    "LinearActivation",
    "LinearReLU",
    "MLP",
    "MSELoss",
    "Sequential",
    "SmoothL1Loss",
    "utils",
]


class Sequential(nn.Sequential):
    """An nn.Sequential that runs each Linear/activation stack among its children as one call.

    The children are the user's own (nn.Linear, mlp_ext.nn.Linear, LinearActivation; nn.ReLU, GELU,
    SiLU, Tanh, Sigmoid, and LeakyReLU, ELU, Softplus with default arguments), and so are their
    keys, hooks and parameters. nn.Identity, and nn.Dropout while it does nothing, do not end a
    stack. Any other child, and one with hooks, a parametrization, or a forward or compile() of its
    own, runs as itself, in order.

    All children do so, by nn.Sequential.forward, while something may want to see them: a
    TorchFunctionMode or TorchDispatchMode, a hook for all modules, a function or module class of
    torch that is patched; and for an input of a subclass of Tensor.

    mlp_ext.fuse(model) turns every suitable nn.Sequential of a model into this class;
    mlp_ext.explain(model) says which Linear takes the fused call, and why another does not.

    Under torch.compile, torch.export and tracing the children are called one by one: the graph is
    that of the nn.Sequential (only our Linear and LinearActivation are operators of ours in it).
    """

    def forward(self, input: Any) -> Any:
        """The children in order, each run of Linear and activation as one call.

        Args:
            input: what the first child takes; for a Linear (..., in_features).

        Returns:
            What the last child gives.
        """
        if is_compiling() or not as_usual(LAYERS, input):
            return super().forward(input)
        return run(iter(self), input, _C.mlp)

    def __prepare_scriptable__(self) -> nn.Module:
        """For torch.jit.script, which puts this in the place of a child that it compiles."""
        if type(self).forward is not Sequential.forward:
            return self
        plain = nn.Sequential()
        plain.__dict__.update({**self.__dict__, "_modules": dict(self._modules)})
        return plain

    def __add__(self, other: nn.Sequential) -> "Sequential":
        return Sequential(*super().__add__(other))

    def __mul__(self, other: int) -> "Sequential":
        return Sequential(*super().__mul__(other))


class MLP(Sequential):
    """A multi-layer perceptron: nn.Linear(sizes[i], sizes[i + 1]) for each i, activations between.

    input (..., sizes[0]) -> (..., sizes[-1]). The children are torch.nn's, in the order in which
    one writes them by hand: Linear, activation, Dropout (if dropout > 0) for each hidden layer,
    then Linear and the module of final_activation, if any. The state_dict keys are those of that
    nn.Sequential. A slice of an MLP is an mlp_ext.nn.Sequential.

    Args:
        sizes: of the input, the hidden layers and the output; at least two, each at least 1.
        activation: after each hidden layer; None or a name of mlp_ext.functional.ACTIVATIONS.
        final_activation: after the last layer, likewise.
        bias: whether the layers have one.
        dropout: the probability of an nn.Dropout after each hidden layer; 0 for none.
        device: of the parameters; None for PyTorch's default.
        dtype: of the parameters; None for PyTorch's default.

    Raises:
        ValueError: for fewer than two sizes, a size below 1, a dropout outside [0, 1], an unknown
            activation.
        TypeError: for a size that is no integer.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: str | None = "relu",
        final_activation: str | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = [operator.index(size) for size in sizes]
        if len(sizes) < 2:
            raise ValueError(f"an MLP has at least an input and an output size, got {sizes}")
        if min(sizes) < 1:
            raise ValueError(f"the sizes of an MLP are positive, got {sizes}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout is a probability between 0 and 1, got {dropout}")
        activation_code(activation)
        activation_code(final_activation)

        super().__init__()
        last = len(sizes) - 2
        for i in range(last + 1):
            self.append(nn.Linear(sizes[i], sizes[i + 1], bias, device, dtype))
            name = final_activation if i == last else activation
            if name is not None:
                form = FORMS[name]
                self.append(form.module(**form.arguments))
            if dropout > 0 and i < last:
                self.append(nn.Dropout(dropout))

    def __getitem__(self, idx: int | slice) -> nn.Module:
        if isinstance(idx, slice):
            return Sequential(OrderedDict(list(self._modules.items())[idx]))
        return super().__getitem__(idx)


for _class in (Sequential, MLP):
    watch_class(LAYERS, _class, __name__)
