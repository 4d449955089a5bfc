"""torch.nn's modules with the same parameters, keys and results; Linear + activation as one call.

    Linear, LinearReLU     an nn.Linear with an activation of its own
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
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.modules import module as _torch_module
from torch.overrides import has_torch_function

from .. import functional
from .._load import _C
from .._loss_modules import (
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    HuberLoss,
    L1Loss,
    MSELoss,
    SmoothL1Loss,
)
from .._runs import CODES, FORMS, OWN_LINEAR, ROLES, run
from .._surroundings import LAYERS, watch_class
from ..functional import activation_code
from . import utils

__all__ = [
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "HuberLoss",
    "L1Loss",
    "Linear",
    "LinearReLU",
    "MLP",
    "MSELoss",
    "Sequential",
    "SmoothL1Loss",
    "utils",
]


class Linear(nn.Linear):
    """act(input weight^T + bias): an nn.Linear followed by an activation, in one call.

    input (..., in_features) -> (..., out_features). weight (out_features, in_features) and bias
    (out_features,) are drawn exactly as torch.nn.Linear draws them, and the state_dict is its own.
    `activation` is an attribute, which may be reassigned. Errors of the call are those of
    mlp_ext.functional.linear.

    Args:
        in_features: size of each input row, at least 0.
        out_features: size of each output row, at least 0.
        bias: whether there is one.
        device: of the parameters; None for PyTorch's default.
        dtype: of the parameters; None for PyTorch's default.
        activation: None or a name of mlp_ext.functional.ACTIVATIONS.

    Raises:
        ValueError: for an unknown activation, here or, if it was reassigned, at the next call.
    """

    activation: str | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
    ) -> None:
        activation_code(activation)  # before the weights are drawn: a refusal leaves the RNG alone
        super().__init__(in_features, out_features, bias, device, dtype)
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        # self.weight costs 0.4 us (Module.__getattr__), the dictionary 0.05. A parametrization,
        # weight_norm or prune takes the entry out and puts an attribute in its place.
        """The layer and its activation in one call.

        Args:
            input: (..., in_features), of the parameters' dtype and device.

        Returns:
            (..., out_features).
        """
        parameters = self._parameters
        try:
            weight, bias = parameters["weight"], parameters["bias"]
        except KeyError:
            weight, bias = self.weight, self.bias
        # functional.linear, without its two further Python calls (0.2 of 2.6 us, batch 2, 2 to 30).
        code = CODES.get(self.activation)
        if code is None or has_torch_function((input, weight, bias)) or is_compiling():
            return functional.linear(input, weight, bias, activation=self.activation)
        try:
            return _C.linear(input, weight, bias, code)
        except TypeError:
            return functional.linear(input, weight, bias)  # which says what is wrong

    def extra_repr(self) -> str:
        """What print(module) says: nn.Linear's, and the activation."""
        return f"{super().extra_repr()}, activation={self.activation!r}"

    def __prepare_scriptable__(self) -> nn.Module:
        """For torch.jit.script, which puts this in the place of a child that it compiles."""
        return _ScriptableLinear(self) if type(self).forward is Linear.forward else self


class _ScriptableLinear(nn.Linear):
    """Linear in the words that TorchScript has; same parameters and keys."""

    def __init__(self, linear: Linear) -> None:
        nn.Module.__init__(self)
        self.__dict__.update({**linear.__dict__, "_modules": dict(linear._modules)})
        form = FORMS.get(linear.activation or "")
        self.activation = form.module(**form.arguments) if form else nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        return self.activation(nn.functional.linear(input, self.weight, self.bias))


class LinearReLU(Linear):
    """Linear(..., activation="relu").

    Args:
        in_features: size of each input row.
        out_features: size of each output row.
        bias: whether there is one.
        device: of the parameters; None for PyTorch's default.
        dtype: of the parameters; None for PyTorch's default.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype, activation="relu")


ROLES[Linear] = ROLES[LinearReLU] = (OWN_LINEAR, Linear.forward)

_module_call = nn.Module.__call__
_is_tracing = torch._C._get_tracing_state


class Sequential(nn.Sequential):
    """An nn.Sequential that runs each Linear/activation stack among its children as one call.

    The children are the user's own (nn.Linear or mlp_ext.nn.Linear; nn.ReLU, GELU, SiLU, Tanh,
    Sigmoid, and LeakyReLU, ELU, Softplus with default arguments), and so are their keys, hooks and
    parameters. nn.Identity, and nn.Dropout while it does nothing, do not end a stack. Any other
    child, and one with hooks, a parametrization, or a forward or compile() of its own, runs as
    itself, in order.

    mlp_ext.fuse(model) turns every suitable nn.Sequential of a model into this class;
    mlp_ext.explain(model) says which Linear takes the fused call, and why another does not.

    Under torch.compile, torch.export and tracing the children are called one by one: the graph is
    that of the nn.Sequential (only an mlp_ext.nn.Linear among them is an operator of ours).
    """

    def forward(self, input: Any) -> Any:
        """The children in order, each run of Linear and activation as one call.

        Args:
            input: what the first child takes; for a Linear (..., in_features).

        Returns:
            What the last child gives.
        """
        if (
            type(input) is not Tensor  # also a torch.fx.Proxy, a FakeTensor, a DTensor
            or is_compiling()
            or _is_tracing()
            or nn.Module.__call__ is not _module_call
            or _torch_module._global_forward_hooks
            or _torch_module._global_forward_pre_hooks
            or _torch_module._global_backward_hooks
            or _torch_module._global_backward_pre_hooks
        ):
            for child in self:
                input = child(input)
            return input
        return run(iter(self._modules.values()), input, functional._stack)

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


for _class in (Linear, LinearReLU, Sequential, MLP):
    watch_class(LAYERS, _class)
