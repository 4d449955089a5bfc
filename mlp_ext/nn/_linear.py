"""mlp_ext.nn.Linear, and its siblings with an activation, which are no nn.Linear."""

from abc import ABCMeta
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_compiling

from .. import functional
from .._load import _C
from .._runs import CODES, FORMS, OWN_LINEAR, ROLES, TORCH_LINEAR
from .._surroundings import LAYERS, as_usual, watch_class
from ..functional import activation_code

_torch_forward = nn.Linear.forward

# What an activation's name stands for, as torch's module computes it.
_MODULES = {name: form.module(**form.arguments) for name, form in FORMS.items()}


# Both forwards read weight and bias once, as a parametrization computes them. self.weight costs
# 0.4 us (Module.__getattr__), the dictionary 0.05; a parametrization, weight_norm or prune takes
# the entry out and puts an attribute in its place. With code of torch's patched, which may be
# __getattr__, what the dictionary gave is read again as torch does.


# ABCMeta lets isinstance(module, Linear) be true of a LinearActivation, which must not be found by
# whoever asks for an nn.Linear.
class Linear(nn.Linear, metaclass=ABCMeta):
    """nn.Linear by mlp_ext.functional.linear; with an activation, a LinearActivation.

    input (..., in_features) -> (..., out_features). weight (out_features, in_features) and bias
    (out_features,) are drawn exactly as torch.nn.Linear draws them, and the state_dict is its own.
    Errors of the call are those of torch.nn.Linear.

    LoRA, quantizers, pruning and the like take whatever is an nn.Linear for an affine map. So a
    Linear(..., activation="relu") is a LinearActivation, which is none, though it is an mlp_ext
    Linear to isinstance. Setting `activation` to a name turns an existing Linear into one as well.

    Args:
        in_features: size of each input row, at least 0.
        out_features: size of each output row, at least 0.
        bias: whether there is one.
        device: of the parameters; None for PyTorch's default.
        dtype: of the parameters; None for PyTorch's default.
        activation: None or a name of mlp_ext.functional.ACTIVATIONS.

    Raises:
        ValueError: for an unknown activation, here and when it is set.
        TypeError: for an activation of a subclass, which would be an nn.Linear with one: derive it
            from LinearActivation.
    """

    __module__ = "mlp_ext.nn"

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
        if activation is None:
            super().__init__(in_features, out_features, bias, device, dtype)
            self.activation = None
            return
        activation_code(activation)  # before the weights are drawn: a refusal leaves the RNG alone
        other = _with_activation(self)
        LinearActivation.__init__(
            other, in_features, out_features, bias, device, dtype, activation=activation
        )

    def forward(self, input: Tensor) -> Tensor:
        """The layer in one call.

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
        if is_compiling():
            return functional.linear(input, weight, bias)
        if as_usual(LAYERS, input, weight, bias):
            return _C.linear(input, weight, bias, 0)
        if nn.Linear.forward is not _torch_forward:
            return super().forward(input)
        if "weight" in parameters:
            weight, bias = self.weight, self.bias
        return F.linear(input, weight, bias)

    def extra_repr(self) -> str:
        """What print(module) says: nn.Linear's, and the activation."""
        return f"{super().extra_repr()}, activation={self.activation!r}"

    def __setattr__(self, name: str, value: Any) -> None:
        is_of_subclass = isinstance(value, nn.Module) and type(self) is not Linear
        if name != "activation" or value is None or is_of_subclass:
            return super().__setattr__(name, value)
        activation_code(value)
        _with_activation(self).activation = value

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A pickle from the time when a Linear with an activation was a Linear.
        if isinstance(state.get("activation"), str):
            _with_activation(self).__setstate__(state)
        else:
            super().__setstate__(state)

    def __prepare_scriptable__(self) -> nn.Module:
        """For torch.jit.script, which puts this in the place of a child that it compiles."""
        return _ScriptableLinear(self, None) if type(self).forward is Linear.forward else self


class LinearActivation(nn.Module):
    """act(input weight^T + bias) in one call: a Linear and its activation, and no nn.Linear.

    input (..., in_features) -> (..., out_features). weight (out_features, in_features) and bias
    (out_features,) are drawn exactly as torch.nn.Linear draws them, and the state_dict is its own.
    `activation` is an attribute, which may be reassigned. Errors of the call are those of
    torch.nn.Linear. mlp_ext.nn.Linear(..., activation="relu") makes one of these.

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

    __module__ = "mlp_ext.nn"
    __constants__ = ["in_features", "out_features"]

    in_features: int
    out_features: int
    weight: Tensor
    bias: Tensor | None
    activation: str | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None,
    ) -> None:
        activation_code(activation)
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        weight = torch.empty((out_features, in_features), device=device, dtype=dtype)
        self.weight = nn.Parameter(weight)
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()
        self.activation = activation

    def reset_parameters(self) -> None:
        """Draw weight and bias anew, as nn.Linear does."""
        nn.Linear.reset_parameters(cast(nn.Linear, self))

    def forward(self, input: Tensor) -> Tensor:
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
        activation = self.activation
        code = CODES.get(activation)
        if code is None or is_compiling():  # functional refuses an unknown activation
            return functional.linear(input, weight, bias, activation=activation)
        if as_usual(LAYERS, input, weight, bias):
            return _C.linear(input, weight, bias, code)
        if "weight" in parameters:
            weight, bias = self.weight, self.bias
        output = F.linear(input, weight, bias)
        return output if activation is None else _MODULES[activation].forward(output)

    def extra_repr(self) -> str:
        """What print(module) says: nn.Linear's, and the activation."""
        plain = nn.Linear.extra_repr(cast(nn.Linear, self))
        return f"{plain}, activation={self.activation!r}"

    def __prepare_scriptable__(self) -> nn.Module:
        """For torch.jit.script, which puts this in the place of a child that it compiles."""
        if type(self).forward is not LinearActivation.forward:
            return self
        return _ScriptableLinear(self, self.activation)


class LinearReLU(LinearActivation):
    """LinearActivation(..., activation="relu").

    Args:
        in_features: size of each input row.
        out_features: size of each output row.
        bias: whether there is one.
        device: of the parameters; None for PyTorch's default.
        dtype: of the parameters; None for PyTorch's default.
    """

    __module__ = "mlp_ext.nn"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype, activation="relu")


def _with_activation(linear: Linear) -> LinearActivation:
    """`linear` itself, which becomes a LinearActivation."""
    if type(linear) is not Linear:
        name = type(linear).__name__
        raise TypeError(
            f"{name} is an nn.Linear, which is affine, so it cannot have an activation: derive "
            f"{name} from mlp_ext.nn.LinearActivation"
        )
    nn.Module.__setattr__(linear, "__class__", LinearActivation)
    return cast(LinearActivation, linear)


class _ScriptableLinear(nn.Linear):
    """Linear and activation in the words that TorchScript has; same parameters and keys."""

    def __init__(self, linear: Linear | LinearActivation, activation: str | None) -> None:
        nn.Module.__init__(self)
        self.__dict__.update({**linear.__dict__, "_modules": dict(linear._modules)})
        self.activation = _MODULES[activation] if activation else nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        return self.activation(F.linear(input, self.weight, self.bias))


Linear.register(LinearActivation)
ROLES[Linear] = TORCH_LINEAR
ROLES[LinearActivation] = ROLES[LinearReLU] = OWN_LINEAR
for _class in (Linear, LinearActivation, LinearReLU):
    watch_class(LAYERS, _class, __name__)
