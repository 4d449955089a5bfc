"""functional.linear and linear_relu against the reference: values, gradients, shapes, layouts."""

import math

import pytest
import torch
from cases import (
    ACTIVATIONS,
    DTYPES,
    EMPTY_SHAPES,
    HALVES,
    LAYOUTS,
    LEADING,
    activations,
    check,
    cycled_activation,
    dtypes,
    evaluate,
    linear_tensors,
    relayout,
    shapes,
    smooth_grad_output,
)
from torch.autograd import gradcheck, gradgradcheck

from mlp_ext import functional, reference


def pair(activation):
    """(ours, the reference) as functions of (input, weight, bias)."""

    def ours(x, w, b=None):
        return functional.linear(x, w, b, activation=activation)

    def theirs(x, w, b=None):
        return reference.linear(x, w, b, activation=activation)

    return ours, theirs


def check_linear(label, x, w, b, activation, dy=None):
    if dy is None:
        dy = smooth_grad_output(x, w, b, activation, x.dtype)
    check(f"{label} {activation}", *pair(activation), (x, w, b), dy)


@shapes()
@dtypes("f64", "f32")
def test_shapes(isa, dtype, shape):
    for i, activation in enumerate((None, "relu", cycled_activation(shape))):
        x, w, b = linear_tensors(shape, dtype, bias=i != 1)
        check_linear("", x, w, b, activation)


@shapes([(1, 1, 1), (7, 33, 17), (14, 48, 65), (13, 15, 257), (130, 200, 300)])
@dtypes(*HALVES)
def test_shapes_of_16_bit_types(isa, dtype, shape):
    for activation in ACTIVATIONS:
        x, w, b = linear_tensors(shape, dtype)
        check_linear("", x, w, b, activation)


@shapes([(1031, 257, 65), (3, 1025, 130), (2049, 3, 5)])
@dtypes("f64", "f32", "bf16")
def test_threads_agree_with_reference(threads, dtype, shape):
    x, w, b = linear_tensors(shape, dtype)
    check_linear("", x, w, b, "gelu_tanh")


@shapes([(14, 32, 8193), (8193, 17, 5), (3, 8200, 31), (77, 65, 1031)])
def test_bfloat16_around_the_longest_sum_of_its_kernels(isa, threads, shape):
    for activation in (None, "relu", "tanh"):
        check_linear("", *linear_tensors(shape, torch.bfloat16), activation)


@dtypes("f64", "f32")
@pytest.mark.parametrize("leading", LEADING, ids=str)
def test_leading_dimensions(isa, leading, dtype):
    for k, n in ((5, 7), (33, 17), (1, 1)):
        x, w, b = linear_tensors((0, n, k), dtype, leading=leading)
        check_linear(f"K{k}_N{n}", x, w, b, "silu")
        check_linear(f"K{k}_N{n} no bias", x, w, None, None)


@shapes(EMPTY_SHAPES)
@activations((None, "relu", "sigmoid", "softplus"))
def test_empty_dimensions(isa, activation, shape):
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x, w, b = linear_tensors(shape, dtype)
        check_linear(str(dtype), x, w, b, activation)
        check_linear(f"{dtype} no bias", x, w, None, activation)


# Expanded layouts leave one distinct element of some gradients; with tensors of one sign it is no
# sum that cancels, which would be a test of luck.


@dtypes("f64", "f32", "bf16")
@pytest.mark.parametrize("input_layout", LAYOUTS)
def test_memory_layouts(isa, input_layout, dtype):
    for shape in ((7, 33, 17), (33, 48, 65), (1, 17, 2), (64, 1, 16)):
        dy = torch.rand(shape[:2]).to(dtype)
        for weight_layout in LAYOUTS:
            for bias_layout in ("contiguous", "columns_apart", "misaligned", "expanded_columns"):
                layouts = (input_layout, weight_layout, bias_layout)
                tensors = linear_tensors(shape, dtype)
                x, w, b = (relayout(t.abs(), at) for t, at in zip(tensors, layouts, strict=True))
                label = f"{shape} weight {weight_layout} bias {bias_layout}"
                activation = "softplus" if bias_layout == "contiguous" else None
                check_linear(label, x, w, b, activation, dy)


@dtypes("f64", "f32", "bf16")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_grad_output_layouts(isa, layout, dtype):
    for shape in ((7, 33, 17), (33, 48, 65), (16, 1, 3), (1, 17, 3)):
        for activation in (None, "relu", "gelu"):
            x, w, b = (t.abs() for t in linear_tensors(shape, dtype))
            dy = relayout(torch.rand(shape[:2]).to(dtype), layout)
            check_linear(str(shape), x, w, b, activation, dy)


def test_n_d_input_that_is_not_a_view_of_a_matrix(isa):
    """(batch, features, time) transposed: rows cannot be merged without a copy."""
    base = torch.randn(4, 33, 5, dtype=torch.float64)
    w, b = torch.randn(17, 33, dtype=torch.float64), torch.randn(17, dtype=torch.float64)
    for x in (
        base.transpose(1, 2),
        base.permute(2, 0, 1),
        base.transpose(1, 2)[::2],
        base[:1].transpose(1, 2).expand(3, -1, -1),
    ):
        check_linear("", x, w, b, "elu")


def test_sum_backward_and_transposed_use(isa):
    x, w, b = linear_tensors((13, 31, 29), torch.float64)
    c = torch.randn(31, 13, dtype=torch.float64)
    for activation in ACTIVATIONS:
        ours, theirs = pair(activation)
        for use in (torch.sum, lambda y: (y.t() * c).sum(), lambda y: y[::2, 1::3].sum()):
            one = torch.ones((), dtype=torch.float64)
            check(
                str(activation),
                *(lambda *a, f=f, use=use: use(f(*a)) for f in (ours, theirs)),
                (x, w, b),
                one,
            )


def test_bias_that_broadcasts(isa):
    """F.linear takes any bias that broadcasts; the odd ones must not be read past their end."""
    x, w, _ = linear_tensors((4, 3, 5), torch.float64)
    for shape in ((1,), (), (4, 3), (1, 3), (4, 1)):
        check_linear(str(shape), x, w, torch.randn(shape, dtype=torch.float64), "relu")


def test_one_dimensional_weight():
    x = torch.randn(4, 5, dtype=torch.float64)
    check_linear("matrix", x, torch.randn(5, dtype=torch.float64), None, "tanh")
    check_linear("vector", x[0], torch.randn(5, dtype=torch.float64), None, "tanh")


def test_linear_relu(isa):
    x, w, b = linear_tensors((29, 33, 65), torch.float32)
    for bias in (b, None):
        dy = smooth_grad_output(x, w, bias, "relu", x.dtype)
        check("", functional.linear_relu, reference.linear_relu, (x, w, bias), dy)
        fused = functional.linear(x, w, bias, activation="relu")
        assert torch.equal(functional.linear_relu(x, w, bias), fused)


def test_every_name_is_accepted_and_no_other():
    assert set(functional.ACTIVATIONS) == set(reference.ACTIVATIONS)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@activations()
def test_gradcheck(isa, activation, bias):
    x, w, b = linear_tensors((3, 5, 4), torch.float64, bias=bias)
    leaves = [t.requires_grad_() for t in (x, w, b) if t is not None]
    assert gradcheck(pair(activation)[0], leaves)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@activations()
def test_gradgradcheck(activation, bias):
    x, w, b = linear_tensors((3, 5, 4), torch.float64, bias=bias)
    leaves = [t.requires_grad_() for t in (x, w, b) if t is not None]
    assert gradgradcheck(pair(activation)[0], leaves)


@activations()
def test_second_derivatives_equal_those_of_the_reference(isa, activation):
    """The gradient of a gradient penalty, as in a physics-informed network."""
    x, w, b = linear_tensors((6, 17, 9), torch.float64)

    def penalty(linear):
        leaves = [t.clone().requires_grad_() for t in (x, w, b)]
        y = linear(*leaves)
        (dx,) = torch.autograd.grad(y.square().sum(), leaves[0], create_graph=True)
        return torch.autograd.grad(dx.square().sum() + y.sum(), leaves)

    for ours, theirs in zip(*map(penalty, pair(activation)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 30.0, -30.0, 200.0, -200.0]


def pattern(t):
    """NaN, +Inf, -Inf and finite as 1, 2, 3 and 0."""
    return torch.isnan(t) + 2 * (t == math.inf) + 3 * (t == -math.inf)


@activations()
@dtypes("f64", "f32")
def test_nan_and_inf_pass_through_activations(isa, dtype, activation):
    """Each special value alone and in a long row: PyTorch's scalar and vector code differ for some
    (gelu of Inf); where they do, either answer will do."""
    ours, theirs = pair(activation)
    one = torch.ones(1, 1, dtype=dtype)
    dy = torch.ones(70, 1, dtype=dtype)
    for value in SPECIAL:
        column = torch.full((70, 1), value, dtype=dtype)
        expected = evaluate(theirs, (column, one, None), dy)
        single = evaluate(theirs, (column[:1], one, None), dy[:1])
        for rows, actual in (
            ("column", evaluate(ours, (column, one, None), dy)),
            ("single", evaluate(ours, (column[:1], one, None), dy[:1])),
            ("row", evaluate(ours, (one, column, None), dy.t())),
        ):
            for name in ("output", "grad0"):
                want = pattern(expected[name][0]).item()
                if want != pattern(single[name][0]).item():
                    continue
                name = "grad1" if (rows, name) == ("row", "grad0") else name
                got = pattern(actual[name]).unique().tolist()
                assert got == [want], f"{activation}({value}) {rows} {name}: {got}, not {want}"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@activations((None, "relu", "tanh"))
def test_nan_and_inf_stay_in_their_rows_and_columns(isa, activation, value):
    """One special element in X, W, b or dY reaches exactly the outputs that depend on it."""
    shape = (9, 35, 18)
    for place in range(4):
        for at in (0, -1):
            x, w, b = linear_tensors(shape, torch.float32)
            dy = smooth_grad_output(x, w, b, activation, x.dtype)
            (x, w, b, dy)[place].view(-1)[at] = value
            results = [evaluate(f, (x, w, b), dy) for f in pair(activation)]
            for name, expected in results[1].items():
                assert torch.equal(pattern(results[0][name]), pattern(expected)), (place, at, name)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_relu_at_zero_and_of_nan(isa, dtype):
    x = torch.tensor([[0.0], [-0.0], [math.nan], [1.0]], dtype=dtype, requires_grad=True)
    y = functional.linear_relu(x, torch.ones(1, 1, dtype=dtype))
    assert torch.equal(y.isnan().view(-1), torch.tensor([False, False, True, False]))
    y.sum().backward()
    assert x.grad.view(-1)[:2].tolist() == [0.0, 0.0] and x.grad[3].item() == 1.0


def test_same_bits_each_time(isa, threads):
    x, w, b = linear_tensors((130, 200, 300), torch.float32)
    dy = torch.randn(130, 200)
    first = evaluate(pair("gelu")[0], (x, w, b), dy)
    for layout in ("contiguous", "misaligned", "contiguous"):
        again = [relayout(t.clone(), layout) for t in (x, w, b, dy)]
        for name, value in evaluate(pair("gelu")[0], again[:3], again[3]).items():
            assert torch.equal(value, first[name]), (layout, name)
