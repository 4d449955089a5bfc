"""functional.mlp, the whole stack as one node, against the reference layer by layer."""

import math

import pytest
import torch
from cases import (
    ACTIVATIONS,
    HALVES,
    KINKED,
    LEADING,
    activations,
    assert_equal_to,
    check,
    dtypes,
    evaluate,
    relayout,
    stack_tensors,
)
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks

from mlp_ext import functional, reference

# (rows, sizes): mixed widths around the tiles, one layer, a 1-wide neck, the seed's 2-30-20-2.
STACKS = [
    (2, (2, 30, 20, 2)),
    (5, (3, 7)),
    (1, (1, 1, 1, 1)),
    (17, (33, 1, 49, 16)),
    (8, (16, 48, 32)),
    (31, (65, 14, 12, 6, 4, 3)),
    (13, (257, 15, 129, 10)),
    (3, (5, 385, 2)),
]


def stack_id(value):
    return "M{}_{}".format(value[0], "-".join(map(str, value[1])))


stacks = pytest.mark.parametrize("stack", STACKS, ids=stack_id)


def pair(activation="relu", final_activation=None):
    """(ours, the reference) as functions of (input, W0, b0, W1, b1, ...)."""

    def of(module):
        def run(x, *parameters):
            weights, biases = list(parameters[::2]), list(parameters[1::2])
            return module.mlp(
                x, weights, biases, activation=activation, final_activation=final_activation
            )

        return run

    return of(functional), of(reference)


def check_stack(label, x, parameters, activation, final_activation, dy=None):
    functions = pair(activation, final_activation)
    if dy is None:
        dy = torch.randn(*x.shape[:-1], parameters[-2].shape[0], dtype=torch.float64).to(x.dtype)
    label = f"{label} {activation}, {final_activation}"
    # A neck one unit wide has gradients that are one cancelling sum: hence a wider floor.
    check(label, *functions, (x, *parameters), dy, floor_eps=256)


@stacks
@dtypes("f64", "f32")
def test_stacks(isa, dtype, stack):
    for i, activation in enumerate(ACTIVATIONS):
        x, parameters = stack_tensors(*stack, dtype, activation=activation)
        # A final kink is where stack_tensors looks, too.
        final = activation if i % 2 else None
        check_stack("", x, parameters, activation, final)


@dtypes(*HALVES)
def test_stacks_of_16_bit_types(isa, dtype):
    """No kinked activations: a rounded hidden layer moves the next one across the kink."""
    for rows, sizes in ((2, (2, 30, 20, 2)), (17, (33, 64, 49, 16))):
        for activation in (a for a in ACTIVATIONS if a not in KINKED):
            x, parameters = stack_tensors(rows, sizes, dtype, activation=activation)
            check_stack(str(sizes), x, parameters, activation, None)


def test_large_stack(isa, threads):
    x, parameters = stack_tensors(64, (300, 200, 100, 10), torch.float32, margin=1e-6)
    check_stack("relu", x, parameters, "relu", None)
    x, parameters = stack_tensors(1031, (65, 130, 5), torch.float32, activation="gelu")
    check_stack("gelu", x, parameters, "gelu", "sigmoid")
    # Weights too many to give each thread its rows of the batch: every layer is cut instead.
    for final in (None, "tanh"):
        x, parameters = stack_tensors(100, (400, 350, 9), torch.float32, activation="silu")
        check_stack("by layers", x, parameters, "silu", final)


def test_frozen_parts_of_a_large_stack(threads):
    """Each of the gradients left out in turn, in both of the ways to cut a stack."""
    for rows, sizes in ((300, (33, 40, 20, 5)), (60, (400, 350, 33, 5))):
        x, parameters = stack_tensors(rows, sizes, torch.float64, activation="tanh")
        dy = torch.randn(rows, 5, dtype=torch.float64)
        for wanted in ((0,), (1,), (2, 5), (6,), (0, 3), (1, 4)):
            results = []
            for function in pair("tanh"):
                leaves = [t.detach().clone() for t in (x, *parameters)]
                for i in wanted:
                    leaves[i].requires_grad_()
                results.append(
                    torch.autograd.grad(function(*leaves), [leaves[i] for i in wanted], dy)
                )
            torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_biases_may_be_missing_anywhere(isa):
    for missing in range(8):
        x, parameters = stack_tensors(6, (9, 17, 8, 5), torch.float64)
        for layer in range(3):
            if missing >> layer & 1:
                parameters[2 * layer + 1] = None
        check_stack(f"missing {missing:03b}", x, parameters, "relu", None)


@pytest.mark.parametrize("leading", LEADING, ids=str)
def test_leading_dimensions(isa, leading):
    x, parameters = stack_tensors(leading, (5, 17, 3), torch.float32)
    check_stack("", x, parameters, "relu", None)


@pytest.mark.parametrize("sizes", [(0, 3, 2), (3, 0, 2), (3, 2, 0), (0, 0, 0)], ids=str)
def test_empty_widths(isa, sizes):
    for rows in (4, 0):
        x, parameters = stack_tensors(rows, sizes, torch.float64)
        check_stack(f"rows {rows}", x, parameters, "gelu", "relu")


@pytest.mark.parametrize("layout", ["transposed", "rows_apart", "columns_apart", "misaligned"])
def test_memory_layouts(isa, layout):
    x, parameters = stack_tensors(14, (33, 16, 7), torch.float64)
    moved = [t if t is None else relayout(t, layout) for t in parameters]
    dy = relayout(torch.randn(14, 7, dtype=torch.float64), layout)
    check_stack("", relayout(x, layout), moved, "relu", None, dy)
    check_stack("sum", x, parameters, "relu", "relu", torch.ones((), dtype=x.dtype).expand(14, 7))


@activations()
def test_gradcheck(isa, activation):
    x, parameters = stack_tensors(3, (4, 5, 2, 3), torch.float64, activation=activation)
    leaves = [t.requires_grad_() for t in (x, *parameters)]
    assert gradcheck(pair(activation)[0], leaves)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@activations()
def test_gradgradcheck(activation, bias):
    x, parameters = stack_tensors(2, (3, 4, 2), torch.float64, activation=activation, bias=bias)
    leaves = [t.requires_grad_() for t in (x, *parameters) if t is not None]

    def stack(x, *tensors):
        every = tensors if bias else [t for w in tensors for t in (w, None)]
        return pair(activation, activation)[0](x, *every)

    assert gradgradcheck(stack, leaves)


def test_third_derivatives():
    """d3y/dx3 of a tanh network: the double backward is itself differentiable."""
    x, parameters = stack_tensors(5, (1, 7, 1), torch.float64, activation="tanh")

    def third(f):
        point = y = x.clone().requires_grad_()
        y = f(point, *parameters)
        for _ in range(3):
            (y,) = torch.autograd.grad(y.sum(), point, create_graph=True)
        return {"third": y.detach()}

    assert_equal_to("tanh", *map(third, pair("tanh")), 1e-10)


@activations()
def test_stack_equals_separate_layers(isa, activation):
    """Fused and separate agree to rounding, gradients too."""

    def separate(x, *parameters):
        layers = list(zip(parameters[::2], parameters[1::2], strict=True))
        for w, b in layers[:-1]:
            x = functional.linear(x, w, b, activation=activation)
        return functional.linear(x, *layers[-1])

    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 5e-6)):
        x, parameters = stack_tensors(29, (17, 33, 15, 4), dtype, activation=activation)
        dy = torch.randn(29, 4, dtype=dtype)
        results = [evaluate(f, (x, *parameters), dy) for f in (pair(activation)[0], separate)]
        assert_equal_to(str(dtype), *results, tolerance)


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_nan_and_inf_propagate(isa, value):
    for activation in ("relu", "tanh", "sigmoid"):
        x, parameters = stack_tensors(9, (5, 17, 6), torch.float32, activation=activation)
        x[4, 2] = value
        dy = torch.ones(9, 6)
        ours, theirs = (evaluate(f, (x, *parameters), dy) for f in pair(activation))
        for name in theirs:
            assert torch.equal(ours[name].isnan(), theirs[name].isnan()), (activation, name)
            assert torch.equal(ours[name].isinf(), theirs[name].isinf()), (activation, name)


def saved_storages(function):
    """Runs function() and returns {data_ptr: bytes} of what autograd was given to keep."""
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        out = function()
    return out, {pointer: nbytes for pointer, (nbytes, _) in kept.items()}


@pytest.mark.parametrize("final", [None, "relu"], ids=str)
def test_bytes_kept_for_backward(final):
    """A ReLU stack keeps its input, each layer's output and the weights; no mask besides."""
    rows, sizes = 40, (24, 64, 32, 8)
    x, parameters = stack_tensors(rows, sizes, torch.float32)
    leaves = [t.requires_grad_() for t in (x, *parameters)]
    out, kept = saved_storages(lambda: pair("relu", final)[0](*leaves))
    outputs = rows * sum(sizes[1:] if final else sizes[1:-1])
    weights = sum(w.numel() for w in parameters[::2])
    assert sum(kept.values()) <= 4 * (x.numel() + outputs + weights)
    # The hooks saw the truth only if what backward cannot do without is among it.
    for needed in (x, *parameters[::2]):
        assert needed.untyped_storage().data_ptr() in kept
    assert (out.untyped_storage().data_ptr() in kept) == (final == "relu")


def test_bytes_kept_by_a_frozen_layer():
    """Neither its input nor, without an activation, its output: as PyTorch."""
    x, parameters = stack_tensors(40, (24, 8), torch.float32)
    x.requires_grad_()
    for final, outputs in ((None, 0), ("relu", 40 * 8), ("tanh", 40 * 8)):
        _, kept = saved_storages(lambda final=final: pair("relu", final)[0](x, *parameters))
        assert sum(kept.values()) == 4 * (24 * 8 + outputs)


@activations(reference.ACTIVATIONS)
def test_bytes_kept_by_other_activations(activation):
    """At most the pre-activation besides, and nothing at all without a gradient to compute."""
    rows, sizes = 40, (24, 64, 32, 8)
    x, parameters = stack_tensors(rows, sizes, torch.float32, activation=activation)
    frozen = saved_storages(lambda: pair(activation)[0](x, *parameters))[1]
    assert not frozen
    leaves = [t.requires_grad_() for t in (x, *parameters)]
    _, kept = saved_storages(lambda: pair(activation)[0](*leaves))
    weights = sum(w.numel() for w in parameters[::2])
    assert sum(kept.values()) <= 4 * (x.numel() + 2 * rows * sum(sizes[1:-1]) + weights)
