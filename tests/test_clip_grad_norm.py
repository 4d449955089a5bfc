"""mlp_ext.nn.utils.clip_grad_norm_ against torch.nn.utils.clip_grad_norm_."""

import math
import warnings

import pytest
import torch
from cases import assert_close, assert_same_outcome, dtypes, relative_error, relayout

from mlp_ext.nn.utils import clip_grad_norm_

FUNCTIONS = (clip_grad_norm_, torch.nn.utils.clip_grad_norm_)
SHAPES = ((33, 17), (64,), (), (0,), (1,), (3, 5, 7), (150, 77))
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 0.0, torch.float16: 0.0}


def parameters(dtype=torch.float64, layout="contiguous", shapes=SHAPES):
    torch.manual_seed(5)
    result = []
    for shape in shapes:
        result.append(torch.nn.Parameter(torch.randn(shape, dtype=dtype)))
        result[-1].grad = relayout(torch.randn(shape, dtype=torch.float64).to(dtype), layout)
    return result


def clipped(function, params, *arguments, **options):
    norm = function(params, *arguments, **options)
    assert not norm.requires_grad
    return [norm, *(p.grad for p in params if p.grad is not None)]


def compare(make, *arguments, tolerance=1e-13, **options):
    return assert_same_outcome(
        f"{arguments} {options}",
        *(lambda f=f: clipped(f, make(), *arguments, **options) for f in FUNCTIONS),
        tolerance,
        True,
    )


@dtypes("f64", "f32", "bf16", "f16")
@pytest.mark.parametrize("max_norm", [0.5, 1e-3, 1e6, 0.0, math.inf, -1.0, math.nan, 3])
def test_norms(isa, threads, dtype, max_norm):
    compare(lambda: parameters(dtype), max_norm, tolerance=TOLERANCE[dtype])
    assert clipped(clip_grad_norm_, parameters(dtype), max_norm)[0].dtype == dtype


@dtypes("f64", "f32")
def test_more_elements_than_one_task_takes(isa, threads, dtype):
    """float32 against float64: torch's own sums lose digits here."""

    def make():
        return parameters(dtype, shapes=((300, 333), (700001,), (5,)))

    exact = [p.grad.double() for p in make()]
    norm = math.sqrt(sum(g.square().sum().item() for g in exact))
    for _ in range(2):
        found, *grads = clipped(clip_grad_norm_, make(), 0.1)
        assert found.item() == pytest.approx(norm, rel=1e-6 if dtype == torch.float32 else 1e-12)
        for g, e in zip(grads, exact, strict=True):
            assert relative_error(g, e * (0.1 / (norm + 1e-6))) <= 1e-6


@pytest.mark.parametrize("norm_type", [1, 2, 2.0, "2", 3.0, math.inf, "inf", -math.inf, 0, "two"])
@pytest.mark.parametrize("foreach", [None, True, False])
def test_norm_types_and_foreach(norm_type, foreach):
    compare(lambda: parameters(shapes=((33, 17), (5,))), 0.5, norm_type, foreach=foreach)


@pytest.mark.parametrize(
    "layout",
    ["transposed", "rows_apart", "columns_apart", "misaligned", "expanded_rows"],
)
def test_layouts(isa, layout):
    compare(lambda: parameters(layout=layout), 0.5)
    compare(lambda: parameters(layout=layout, shapes=((9, 4),)), 0.5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("error", [False, True])
@dtypes("f64", "f32")
def test_not_finite(isa, value, error, dtype):
    made = []

    def make():
        params = parameters(dtype)
        params[0].grad.view(-1)[7] = value
        made.append((params, [p.grad.clone() for p in params]))
        return params

    compare(make, 0.5, error_if_nonfinite=error, tolerance=TOLERANCE[dtype])
    params, before = made[0]  # ours
    if error:
        for p, g in zip(params, before, strict=True):
            torch.testing.assert_close(p.grad, g, rtol=0, atol=0, equal_nan=True)


def test_what_may_be_given():
    for give in (list, tuple, iter, lambda ps: (p for p in ps), lambda ps: {p: 1 for p in ps}):
        results = []
        for function in FUNCTIONS:
            params = parameters()
            params[1].grad = None
            results.append([function(give(params), 0.5), *(params[i].grad for i in (0, 2, 3))])
        assert_close("", *results, 1e-13)
    compare(lambda: [torch.nn.Parameter(torch.ones(3))], 0.5)  # no gradient at all
    compare(lambda: [], 0.5)
    for bad in (None, 3, [3], ["p"], [None]):
        assert_same_outcome(
            str(bad), *(lambda f=f, bad=bad: [f(bad, 0.5)] for f in FUNCTIONS), message=True
        )
    for bad in ("x", None, [1.0], torch.ones(2)):
        compare(lambda: parameters(), bad)
    single = torch.nn.Parameter(torch.ones(3))
    single.grad = torch.full((3,), 2.0)
    assert clip_grad_norm_(single, max_norm=1.0).item() == pytest.approx(math.sqrt(12))
    assert single.grad.norm().item() == pytest.approx(1.0)


def test_empty_generator_warns():
    for function in FUNCTIONS:
        with pytest.warns(UserWarning, match="empty generator"):
            function((p for p in ()), 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip_grad_norm_([], 0.5)
        clip_grad_norm_((p for p in parameters()), 0.5)


def with_grads(*grads):
    params = []
    for g in grads:
        params.append(torch.nn.Parameter(torch.zeros(g.shape, dtype=g.dtype, device=g.device)))
        params[-1].grad = g
    return params


def shared():
    params = parameters(shapes=((4, 3), (4, 3)))
    params[1].grad = params[0].grad
    return params


def overlapping():
    whole = torch.arange(10.0)
    return with_grads(whole[:6], whole[4:])


ODD = {
    "complex": lambda: with_grads(torch.full((3,), 1 + 2j), torch.full((2,), 3j)),
    "mixed": lambda: with_grads(torch.ones(3), torch.ones(4, dtype=torch.float64)),
    "mixed_16": lambda: with_grads(torch.ones(3), torch.ones(4, dtype=torch.bfloat16)),
    "shared": shared,
    "overlapping": overlapping,
    "one_expanded": lambda: with_grads(torch.ones(1, 3).expand(4, 3), torch.ones(5)),
    "negative_view": lambda: with_grads(torch._neg_view(torch.full((4,), 3.0))),
    "zero_tensor": lambda: with_grads(torch._efficientzerotensor(10)),
    "integer": lambda: [torch.nn.Parameter(torch.ones(3, dtype=torch.int32), False)],
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_gradients_go_as_in_torch(odd):
    compare(ODD[odd], 0.5, tolerance=1e-6)


@pytest.mark.parametrize("dims", [1, 2])
def test_sparse_gradients(dims):
    def steps(function):
        params = with_grads(
            (torch.eye(4) if dims == 2 else torch.eye(4)[1]).to_sparse(), torch.ones(3)
        )
        return [function(params, 0.5), params[0].grad.to_dense(), params[1].grad]

    assert_same_outcome("", *(lambda f=f: steps(f) for f in FUNCTIONS))


def test_gradients_of_a_graph():
    """create_graph: the norm is no part of it; a change of what backward needs is noticed."""
    for function in FUNCTIONS:
        p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        p.pow(3).sum().backward(create_graph=True)
        doubled = p.grad.square().sum()
        versions = p.grad._version
        norm = function([p], 0.5)
        assert not norm.requires_grad and p.grad._version == versions + 1
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            doubled.backward()
    p = parameters(shapes=((3,),))[0]
    before = p.grad._version
    clip_grad_norm_([p], 1e9)  # nothing to scale
    assert p.grad._version == before + 1


def test_in_a_compiled_function():
    def train(params):
        return clip_grad_norm_(params, 0.5)

    expected = clipped(FUNCTIONS[1], parameters(), 0.5)
    params = parameters()
    norm = torch.compile(train, backend="eager")(params)
    assert_close("", [norm, *(p.grad for p in params)], expected)
