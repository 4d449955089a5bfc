"""functional.linear and linear_relu on CUDA: values and gradients against float64, strides, special
values, and that PyTorch's errors are ours."""

import math

import pytest
import torch
from cases import (
    DTYPES,
    EMPTY_SHAPES,
    FEW_SHAPES,
    HALVES,
    LAYOUTS,
    LEADING,
    activations,
    assert_same_outcome,
    dtypes,
    evaluate,
    linear_tensors,
    relative_error,
    relayout,
    shapes,
    smooth_grad_output,
)
from on_device import DEVICE, IS_CUDA, check_on_device, cuda, cuda_only, to_device

from mlp_ext import functional, reference

pytestmark = cuda

# Around tiles of 64 and 128, sums long enough to be split, rows of no multiple of 16 bytes.
TILES = [(63, 65, 31), (64, 128, 32), (128, 127, 129), (129, 257, 65), (256, 10, 784)]
DEEP = [(64, 64, 4099), (16, 16, 8192), (257, 33, 2050), (1, 1, 5000), (2, 1025, 1030)]
LARGE = [(512, 512, 512), (1031, 515, 257)] if IS_CUDA else []


def pair(activation):
    def of(module):
        return lambda x, w, b=None: module.linear(x, w, b, activation=activation)

    return of(functional), of(reference)


def check_linear(label, x, w, b, activation, dy=None):
    if dy is None:
        dy = smooth_grad_output(x, w, b, activation, x.dtype)
    check_on_device(f"{label} {activation}", *pair(activation), (x, w, b), dy)


@activations()
@dtypes(*DTYPES)
def test_activations(dtype, activation):
    for shape in FEW_SHAPES:
        for bias in (True, False):
            x, w, b = linear_tensors(shape, dtype, bias=bias)
            check_linear(f"{shape} bias={bias}", x, w, b, activation)


@shapes(TILES + DEEP + LARGE)
@dtypes(*DTYPES)
def test_shapes(dtype, shape):
    for activation in (None, "relu", "gelu"):
        check_linear("", *linear_tensors(shape, dtype), activation)


@dtypes("f64", "f32", "bf16")
@pytest.mark.parametrize("leading", LEADING, ids=str)
def test_leading_dimensions(leading, dtype):
    for k, n in ((5, 7), (64, 16), (1, 1)):
        x, w, b = linear_tensors((0, n, k), dtype, leading=leading)
        check_linear(f"K{k}_N{n}", x, w, b, "silu")


@shapes(EMPTY_SHAPES)
def test_empty_dimensions(shape):
    for dtype in DTYPES.values():
        for activation in (None, "relu", "sigmoid"):
            x, w, b = linear_tensors(shape, dtype)
            check_linear(str(dtype), x, w, b, activation)
            check_linear(f"{dtype} no bias", x, w, None, activation)


@dtypes("f64", "f32", "bf16", "f16")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts(layout, dtype):
    """Each of X, W, b and dY in the layout, the others dense; then all of them. Of one sign, as
    expanded tensors leave one element of a gradient, which should be no sum that cancels."""
    for shape in ((7, 33, 17), (64, 48, 64), (1, 17, 2), (130, 1, 16)):
        for places in ((0,), (1,), (2,), (3,), (0, 1, 2, 3)):
            tensors = [t.abs() for t in linear_tensors(shape, dtype)]
            tensors.append(torch.rand(shape[:2]).to(dtype))
            for place in places:
                tensors[place] = relayout(tensors[place], layout)
            check_linear(f"{shape} {places}", *tensors[:3], "softplus", tensors[3])


def test_n_d_input_that_is_not_a_view_of_a_matrix():
    base = torch.randn(4, 33, 5, dtype=torch.float64)
    w, b = torch.randn(17, 33, dtype=torch.float64), torch.randn(17, dtype=torch.float64)
    for x in (base.transpose(1, 2), base.permute(2, 0, 1), base.transpose(1, 2)[::2]):
        check_linear("", x, w, b, "elu")


def test_linear_relu():
    for bias in (True, False):
        tensors = to_device(*linear_tensors((65, 33, 129), torch.float32, bias=bias))
        fused = functional.linear(*tensors, activation="relu")
        assert torch.equal(functional.linear_relu(*tensors), fused)
        assert fused.device.type == DEVICE and fused.is_contiguous()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@activations((None, "relu", "tanh"))
@dtypes("f64", "f32", *HALVES)
def test_nan_and_inf_stay_in_their_rows_and_columns(dtype, activation, value):
    """One special element in X, W, b or dY reaches exactly the results that depend on it. An Inf
    that is split into parts for tensor cores would turn to NaN."""
    shape = (9, 35, 18)
    for place in range(4):
        for at in (0, -1):
            x, w, b = linear_tensors(shape, dtype)
            dy = smooth_grad_output(x, w, b, activation, dtype)
            (x, w, b, dy)[place].view(-1)[at] = value
            tensors = to_device(x, w, b, dy)
            ours, theirs = (evaluate(f, tensors[:3], tensors[3]) for f in pair(activation))
            for name, expected in theirs.items():
                assert torch.equal(kinds(ours[name]), kinds(expected)), (place, at, name)


def kinds(t):
    """NaN, +Inf, -Inf and finite as 1, 2, 3 and 0."""
    return torch.isnan(t) + 2 * (t == math.inf) + 3 * (t == -math.inf)


@dtypes(*DTYPES)
def test_relu_at_zero_and_of_nan(dtype):
    values = torch.tensor([[0.0], [-0.0], [math.nan], [1.0]])
    x = values.to(DEVICE, dtype).requires_grad_()
    y = functional.linear_relu(x, torch.ones(1, 1, dtype=dtype, device=DEVICE))
    assert y.isnan().view(-1).tolist() == [False, False, True, False]
    y.sum().backward()
    assert x.grad.view(-1)[:2].tolist() == [0.0, 0.0] and x.grad[3].item() == 1.0


def test_large_and_tiny_values_keep_their_exponents():
    """Splitting into tensor-core types must neither overflow nor flush what float32 holds."""
    for scale in (1e30, 1e-30):
        x, w, _ = linear_tensors((33, 65, 64), torch.float32)
        exact = (x.double() * scale) @ w.double().t()
        ours = functional.linear(*to_device(x * scale, w)).cpu()
        assert relative_error(ours, exact) < 1e-6, scale


@dtypes(*DTYPES)
def test_same_bits_each_time(dtype):
    """Also where a sum is cut among many blocks, and in float32 for other places in memory (the
    products of the other types may be those of a library)."""
    layouts = ("contiguous", "misaligned") if dtype == torch.float32 else ("contiguous",)
    for shape in ((130, 200, 300), (64, 64, 4099)):
        tensors = to_device(*linear_tensors(shape, dtype), torch.randn(shape[:2]).to(dtype))
        first = evaluate(pair("gelu")[0], tensors[:3], tensors[3])
        for layout in (*layouts, "contiguous"):
            again = [relayout(t.clone(), layout) for t in tensors]
            for name, value in evaluate(pair("gelu")[0], again[:3], again[3]).items():
                assert torch.equal(value, first[name]), (layout, name)


MIXED = {
    "x": (0,), "w": (1,), "b": (2,), "x and w": (0, 1), "w and b": (1, 2), "x and b": (0, 2),
}  # fmt: skip


@cuda_only
@pytest.mark.parametrize("elsewhere", MIXED.values(), ids=MIXED)
def test_tensors_on_two_devices(elsewhere):
    """What PyTorch raises. (With meta tensors, which the CPU has, it computes nonsense.)"""
    tensors = [t.to(DEVICE) for t in linear_tensors((4, 3, 5), torch.float32)]
    for i in elsewhere:
        tensors[i] = tensors[i].cpu()
    for activation in (None, "relu"):
        ours, theirs = pair(activation)
        outcome = assert_same_outcome(
            activation, lambda f=ours: [f(*tensors)], lambda f=theirs: [f(*tensors)]
        )
        assert outcome[0] == "raises"


def test_shapes_and_dtypes_that_do_not_fit():
    x, w, b = to_device(*linear_tensors((4, 3, 5), torch.float32))
    for bad in (
        (x[:, :4], w, b),
        (x.double(), w, b),
        (x, w.half(), b),
        (x, w, b[:2]),
        (x, w.t(), b),
    ):
        ours, theirs = pair("relu")
        outcome = assert_same_outcome(
            "", lambda f=ours, t=bad: [f(*t)], lambda f=theirs, t=bad: [f(*t)]
        )
        assert outcome[0] == "raises"
    torch.testing.assert_close(functional.linear(x, w, b), reference.linear(x, w, b))


@cuda_only
def test_integers_and_complex_are_left_to_pytorch():
    x, w, b = (torch.randn(s, device=DEVICE, dtype=torch.complex64) for s in ((4, 5), (3, 5), (3,)))
    torch.testing.assert_close(functional.linear(x, w, b), reference.linear(x, w, b))
