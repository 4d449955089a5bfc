"""Our losses do under modes and patches, and for subclasses of Tensor, what torch's do."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import mlp_ext


class Recorded(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def batch() -> torch.Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


FUNCTIONS = {
    "CrossEntropyLoss": "cross_entropy",
    "MSELoss": "mse_loss",
    "L1Loss": "l1_loss",
    "HuberLoss": "huber_loss",
    "SmoothL1Loss": "smooth_l1_loss",
    "BCEWithLogitsLoss": "binary_cross_entropy_with_logits",
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("how", ["function", "forward", "mode", "dispatch mode"])
def test_losses(name, how, monkeypatch):
    x, y = batch().requires_grad_(), batch().softmax(1)
    ours, plain = getattr(mlp_ext.nn, name)(), getattr(nn, name)()
    function, torchs = FUNCTIONS[name], getattr(nn, name)
    expected = plain(x, y)

    class Doubled(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            output = func(*args, **(kwargs or {}))
            return output * 2 if func.__name__ == function else output

    real = getattr(F, function)
    with monkeypatch.context() as patches, contextlib.ExitStack() as stack:
        if how == "function":
            patches.setattr(F, function, lambda *args, **kwargs: real(*args, **kwargs) * 2)
        elif how == "forward":
            own = torchs.forward
            patches.setattr(torchs, "forward", lambda self, *args: own(self, *args) * 2)
        elif how == "mode":
            stack.enter_context(Doubled())
        else:
            mode = stack.enter_context(Recorded())
        got = ours(x, y)
        if how == "dispatch mode":
            seen = list(mode.names)
            mode.names.clear()
            plain(x, y)
            assert seen == mode.names
        else:
            torch.testing.assert_close(got, 2 * expected)
    torch.testing.assert_close(ours(x, y), expected)


def test_a_loss_hands_a_subclass_of_tensor_to_torch_s_function():
    class Seen(torch.Tensor):
        functions = []

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            cls.functions.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    x = batch().as_subclass(Seen)
    for name, function in FUNCTIONS.items():
        getattr(mlp_ext.nn, name)()(x, batch().softmax(1))
        assert getattr(F, function) in Seen.functions
