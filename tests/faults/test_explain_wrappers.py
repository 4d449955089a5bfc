"""explain is true of models that other libraries have wrapped: as Accelerate and PEFT do it."""

import functools
import types

import pytest
import torch
from torch import nn
from twins import assert_same, seeded

import mlp_ext
from mlp_ext._load import _C


@pytest.fixture
def calls(monkeypatch):
    """Number of layers of every fused stack so far."""
    found: list[int] = []
    real = _C.mlp

    def counting(input, weights, biases, codes):
        found.append(len(codes))
        return real(input, weights, biases, codes)

    monkeypatch.setattr(_C, "mlp", counting)
    return found


def build() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


def how(model):
    return {report.path: report.how for report in mlp_ext.explain(model)}


def is_true(model, calls) -> bool:
    calls.clear()
    model(X)
    return sum(calls) == sum(report.fused for report in mlp_ext.explain(model))


# Accelerate --------------------------------------------------------------------------------------


def prepared(model: nn.Module) -> nn.Module:
    """With mixed precision: autocast and a conversion around the forward, set on the instance."""

    def converted(forward):
        @functools.wraps(forward)
        def call(*args):
            return forward(*args).float()

        return call

    model._original_forward = model.forward
    autocast = torch.autocast("cpu", torch.bfloat16)(model.forward.__func__)
    model.forward = types.MethodType(autocast, model)
    model.forward = types.MethodType(converted(model.forward.__func__), model)
    return model


def offloaded(model: nn.Module) -> nn.Module:
    """With a hook of Accelerate's on the module."""
    old = model.forward

    def new(module, *args):
        return old(*args)

    model.forward = functools.update_wrapper(functools.partial(new, model), old)
    return model


@pytest.mark.parametrize("wrap", [prepared, offloaded])
def test_a_forward_that_wraps_the_fused_one(wrap, calls):
    ours, plain = wrap(mlp_ext.fuse(seeded(build))), wrap(seeded(build))
    assert_same(ours, plain, X)
    assert is_true(ours, calls) and calls == [3]
    assert "forward set on its Sequential, which wraps that of the class" in how(ours)["0"]


def test_a_forward_that_wraps_the_plain_one(calls):
    ours, plain = mlp_ext.fuse(prepared(seeded(build))), prepared(seeded(build))
    assert_same(ours, plain, X)
    assert is_true(ours, calls) and calls == []
    assert how(ours)["0"].endswith("wraps that of nn.Sequential: call fuse before")


def test_a_forward_that_wraps_nothing(calls):
    ours = mlp_ext.fuse(seeded(build))
    ours.forward = lambda input: input.sin()
    assert is_true(ours, calls) and calls == []
    assert how(ours)["0"].endswith("a forward of its own, set on the instance")


def test_a_wrapped_child(calls):
    ours, plain = mlp_ext.fuse(seeded(build)), seeded(build)
    for model in (ours, plain):
        offloaded(model[2])
    assert_same(ours, plain, X)
    assert is_true(ours, calls) and calls == [1, 1]
    own = offloaded(mlp_ext.nn.LinearReLU(5, 3))
    assert how(own) == {"": "fused by itself with its own relu"}


def test_a_wrapper_around_the_model(calls):
    class Wrapper(nn.Module):
        """As DistributedDataParallel."""

        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, input):
            return self.module(input)

    assert is_true(Wrapper(prepared(mlp_ext.fuse(build()))), calls) and calls == [3]


def test_torch_compile(calls):
    ours = mlp_ext.fuse(seeded(build))
    compiled = torch.compile(ours, backend="eager")
    assert is_true(compiled, calls) and calls == []
    assert how(compiled)["_orig_mod.0"].startswith("left alone: torch.compile makes a graph")
    assert is_true(ours, calls) and calls == [3]
    ours.compile(backend="eager")
    assert is_true(ours, calls) and calls == []


# PEFT --------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """What LoRA puts in the place of an nn.Linear."""

    def __init__(self, base_layer: nn.Linear):
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base_layer.out_features, bias=False)})

    def forward(self, input):
        output = self.base_layer(input)
        return output + self.lora_B["default"](self.lora_A["default"](input))


def adapted(model: nn.Module, names=("0", "2")) -> nn.Module:
    torch.manual_seed(1)
    for name in names:
        if isinstance(model._modules[name], nn.Linear):
            setattr(model, name, Linear(model._modules[name]))
    return model


@pytest.mark.parametrize(
    "make",
    [lambda: adapted(mlp_ext.fuse(seeded(build))), lambda: mlp_ext.fuse(adapted(seeded(build)))],
    ids=["fuse first", "PEFT first"],
)
def test_lora(make, calls):
    ours, plain = make(), adapted(seeded(build))
    assert_same(ours, plain, X)
    assert is_true(ours, calls) and calls == [1]
    said = how(ours)
    for name in ("base_layer", "lora_A.default", "lora_B.default"):
        assert said[f"0.{name}"].startswith(f"left alone: {__name__}.Linear calls it")
    assert said["4"] == "fused into a stack of 1 layer"


def test_lora_around_our_linear_leaves_activations_alone(calls):
    def build(first, second):
        return nn.Sequential(first(5, 8), nn.ReLU(), second(8, 3))

    ours = adapted(seeded(lambda: build(nn.Linear, mlp_ext.nn.Linear)), ("0", "2"))
    plain = adapted(seeded(lambda: build(nn.Linear, nn.Linear)), ("0", "2"))
    assert_same(ours, plain, X)
    assert how(ours)["2.base_layer"] == "fused by itself"

    both = nn.Sequential(mlp_ext.nn.Linear(5, 8, activation="relu"), mlp_ext.nn.Linear(8, 3))
    adapted(both, ("0", "1"))
    assert type(both[0]) is mlp_ext.nn.LinearActivation and type(both[1]) is Linear
