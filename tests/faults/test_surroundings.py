"""What other code may have put in the way is seen, named, and forgotten when it is gone."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as torch_module
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import mlp_ext
from mlp_ext._load import _C
from mlp_ext._surroundings import LAYERS, LOSSES


class SomeFunctionMode(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class SomeDispatchMode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def replacement(*args, **kwargs):
    raise AssertionError("nothing here calls it")


LAYER_PATCHES = [
    *((F, name) for name in ("linear", "relu", "gelu", "silu", "leaky_relu", "elu", "softplus")),
    *((F, name) for name in ("dropout", "batch_norm", "layer_norm")),
    *((torch, name) for name in ("relu", "relu_", "tanh", "sigmoid", "batch_norm", "layer_norm")),
    *((kind, "forward") for kind in (nn.Sequential, nn.Linear, nn.ReLU, nn.Dropout, nn.Identity)),
    *((kind, "forward") for kind in (nn.BatchNorm1d, nn.LayerNorm, nn.Flatten, nn.Softplus)),
    *((nn.ReLU, name) for name in ("__call__", "_call_impl", "_wrapped_call_impl")),
    (nn.Linear, "__getattr__"),
    (torch._C._nn, "silu"),
    (mlp_ext.nn.Linear, "forward"),
    (mlp_ext.nn.LinearReLU, "forward"),
    (mlp_ext.nn.Sequential, "forward"),
]
LOSS_PATCHES = [
    *((F, name) for name in ("cross_entropy", "mse_loss", "l1_loss", "huber_loss")),
    *((F, name) for name in ("smooth_l1_loss", "binary_cross_entropy_with_logits")),
    (F, "binary_cross_entropy"),
    (torch, "binary_cross_entropy_with_logits"),
    (torch._C._nn, "cross_entropy_loss"),
    (nn.MSELoss, "forward"),
    (nn.CrossEntropyLoss, "__call__"),
    (mlp_ext.nn.MSELoss, "forward"),
]
FOR_ALL = [(nn.Module, name) for name in ("__call__", "_call_impl", "_wrapped_call_impl")]


def test_nothing_is_unusual_now():
    for parts in (LAYERS, LOSSES, LAYERS | LOSSES):
        assert _C.as_usual(parts)
        assert _C.what_is_unusual(parts) == ""
    assert _C.as_usual()


@pytest.mark.parametrize(("owner", "name"), LAYER_PATCHES + LOSS_PATCHES + FOR_ALL)
def test_a_patch_is_seen_and_named(monkeypatch, owner, name):
    with monkeypatch.context() as patches:
        patches.setattr(owner, name, replacement)
        assert _C.as_usual(LAYERS) == ((owner, name) in LOSS_PATCHES)
        assert _C.as_usual(LOSSES) == ((owner, name) in LAYER_PATCHES)
        assert not _C.as_usual()
        what = _C.what_is_unusual()
        home = owner.__name__ if owner in (F, torch, torch._C._nn) else f"nn.{owner.__name__}"
        assert f"{home}.{name} is patched (by {__name__}.replacement)" in what
    assert _C.as_usual()


def test_a_patch_of_a_class_is_seen_again_after_it_was_gone(monkeypatch):
    for _ in range(3):
        with monkeypatch.context() as patches:
            patches.setattr(nn.ELU, "forward", replacement)
            assert not _C.as_usual(LAYERS)
        assert _C.as_usual(LAYERS)


def test_other_attributes_of_a_watched_class_do_not_matter(monkeypatch):
    monkeypatch.setattr(nn.ReLU, "remark", "mine", raising=False)
    monkeypatch.setattr(nn.Module, "remark", "mine", raising=False)
    assert _C.as_usual()


def test_a_deleted_forward_is_seen(monkeypatch):
    monkeypatch.delattr(nn.Sigmoid, "forward")
    assert not _C.as_usual(LAYERS)
    assert "torch.nn.Sigmoid.forward is patched" in _C.what_is_unusual(LAYERS)


@pytest.mark.parametrize(
    "kind", ["forward_pre_", "forward_", "full_backward_pre_", "full_backward_"]
)
def test_hooks_for_all_modules_are_seen(kind):
    handle = getattr(torch_module, f"register_module_{kind}hook")(lambda *args: None)
    try:
        assert not _C.as_usual(LAYERS) and not _C.as_usual(LOSSES)
        assert "a hook for all modules is registered" in _C.what_is_unusual()
    finally:
        handle.remove()
    assert _C.as_usual()


def test_a_dictionary_of_hooks_in_the_place_of_another_is_seen(monkeypatch):
    monkeypatch.setattr(torch_module, "_global_forward_hooks", {})
    assert not _C.as_usual(LAYERS)


@pytest.mark.parametrize("mode", [SomeFunctionMode, SomeDispatchMode])
def test_a_mode_is_seen_in_its_own_thread(mode):
    found = []
    with mode():
        assert not _C.as_usual(LAYERS) and not _C.as_usual(LOSSES)
        assert mode.__name__ in _C.what_is_unusual()
        other = threading.Thread(target=lambda: found.append(_C.as_usual()))
        other.start()
        other.join()
    assert found == [True]
    assert _C.as_usual()


def test_a_default_device_is_nothing_unusual():
    torch.set_default_device("cpu")
    try:
        assert _C.as_usual()
        with SomeFunctionMode(), torch.device("meta"):
            assert not _C.as_usual()
            assert "SomeFunctionMode" in _C.what_is_unusual()
    finally:
        torch.set_default_device(None)
    with torch.device("cpu"):
        assert _C.as_usual()
    assert _C.as_usual()


def test_tracing_is_seen():
    found = []

    class Asks(nn.Module):
        def forward(self, x):
            found.append((_C.as_usual(), _C.what_is_unusual()))
            return x + 1

    torch.jit.trace(Asks(), torch.ones(2), check_trace=False)
    assert found == [(False, "torch.jit.trace is recording")]
    assert _C.as_usual()
