"""functional.cross_entropy against torch.nn.functional.cross_entropy, of which it is the twin."""

import contextlib
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from cases import (
    DTYPES,
    HALVES,
    LAYOUTS,
    assert_as_accurate,
    assert_equal_to,
    dtypes,
    evaluate,
    exactly,
    relayout,
)
from torch.autograd import gradcheck, gradgradcheck

from mlp_ext import functional

CLASSES = (1, 2, 3, 7, 8, 9, 10, 15, 16, 17, 31, 33, 64, 1000, 1025)
REDUCTIONS = ("mean", "sum", "none")
IGNORE = 2


def draw(rows, classes, dtype, *, leading=None, scale=2.0):
    """logits (rows, classes, *leading) and class indices (rows, *leading)."""
    tail = leading or ()
    logits = (torch.randn(rows, classes, *tail, dtype=torch.float64) * scale).to(dtype)
    return logits, torch.randint(classes, (rows, *tail))


def options_for(classes, dtype):
    """Every combination of reduction, class weights, ignore_index and label smoothing."""
    weights = (None, (torch.rand(classes, dtype=torch.float64) + 0.2).to(dtype))
    for reduction, weight, ignored, smoothing in itertools.product(
        REDUCTIONS, weights, (-100, min(IGNORE, classes - 1)), (0.0, 0.1, 1.0)
    ):
        yield {
            "reduction": reduction,
            "weight": weight,
            "ignore_index": ignored,
            "label_smoothing": smoothing,
        }


def describe(options):
    short = {k: v for k, v in options.items() if k != "weight"}
    return f"{short} {'weighted' if options.get('weight') is not None else ''}"


def check(logits, target, floor_eps=8, **options):
    """Loss and gradient against PyTorch's: 1e-12 in float64, the yardstick in narrower types."""
    dtype = logits.dtype

    def exact_loss(x):
        wide = {k: v.double() if torch.is_tensor(v) else v for k, v in options.items()}
        return F.cross_entropy(x, exactly([target])[0], **wide)

    def ours(x):
        return functional.cross_entropy(x, target, **options)

    def theirs(x):
        return F.cross_entropy(x, target, **options)

    dy = torch.randn(theirs(logits).shape, dtype=torch.float64).to(dtype)
    label = f"{tuple(logits.shape)} {describe(options)}"
    actual, torchs = (evaluate(f, (logits,), dy) for f in (ours, theirs))
    if dtype == torch.float64:
        return assert_equal_to(label, actual, torchs, 1e-12)
    exact = evaluate(exact_loss, (logits.double(),), dy.double())
    floor = torch.finfo(dtype).eps * (floor_eps if dtype == torch.float32 else 1)
    return assert_as_accurate(label, actual, torchs, exact, floor)


@pytest.mark.parametrize("classes", CLASSES)
@dtypes("f64", "f32")
def test_class_counts_and_options(isa, dtype, classes):
    for options in options_for(classes, dtype):
        check(*draw(13, classes, dtype), **options)


@pytest.mark.parametrize("classes", [2, 10, 17, 1000])
@dtypes(*HALVES)
def test_16_bit_types(isa, dtype, classes):
    for options in options_for(classes, dtype):
        check(*draw(33, classes, dtype), **options)


@dtypes("f64", "f32")
def test_shapes(isa, dtype):
    for rows, leading in ((1, ()), (3, (4,)), (2, (3, 5)), (2, (1, 1)), (1, (2, 1, 3)), (130, ())):
        for options in options_for(5, dtype):
            check(*draw(rows, 5, dtype, leading=leading), **options)
    for options in options_for(5, dtype):
        logits, target = draw(1, 5, dtype)
        check(logits[0], target[0], **options)  # (C,) and ()


@dtypes("f64", "f32")
def test_probability_targets(isa, dtype):
    for shape in ((5, 7), (1, 16), (3, 4, 2), (2, 3, 2, 2)):
        logits = torch.randn(shape, dtype=dtype)
        target = torch.rand(shape, dtype=dtype).softmax(1)
        weight = torch.rand(shape[1], dtype=dtype)
        for reduction in REDUCTIONS:
            for options in ({}, {"weight": weight}, {"label_smoothing": 0.2}):
                check(logits, target, reduction=reduction, **options)
    check(torch.randn(6, dtype=dtype), torch.rand(6, dtype=dtype))


def test_gradient_of_probability_targets():
    leaves = [torch.rand(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert gradcheck(functional.cross_entropy, leaves)


def test_byte_targets(isa):
    logits, target = draw(9, 7, torch.float64)
    check(logits, target.to(torch.uint8))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts(isa, layout):
    for shape in ((9, 17), (16, 3), (1, 10)):
        logits, target = draw(*shape, torch.float64)
        check(relayout(logits, layout), target)
        check(logits, relayout(target.double(), "columns_apart").long())
    strided = torch.randint(5, (18,))[::2]
    check(torch.randn(9, 5, dtype=torch.float64), strided, reduction="none")
    weight = torch.rand(10, dtype=torch.float64)[::2]
    check(torch.randn(9, 5, dtype=torch.float64), strided, weight=weight)
    channels_last = torch.randn(2, 4, 4, 5, dtype=torch.float64).permute(0, 3, 1, 2)
    check(channels_last, torch.randint(5, (2, 4, 4)), reduction="none")


def test_grad_output_layouts(isa):
    logits, target = draw(9, 17, torch.float64)
    for use in (torch.sum, lambda y: y[::2].sum(), lambda y: y.flip(0).cumsum(0).sum()):
        results = [
            evaluate(
                lambda x, f=f, use=use: use(f(x, target, reduction="none")),
                (logits,),
                torch.ones((), dtype=torch.float64),
            )
            for f in (functional.cross_entropy, F.cross_entropy)
        ]
        assert_equal_to("none", *results, 1e-12)
    check(*draw(64, 10, torch.float32))


@dtypes("f64", "f32")
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_everything_ignored(isa, reduction, dtype):
    """The mean of nothing is NaN, the sum 0, as in PyTorch; so are the gradients."""
    logits, _ = draw(5, 7, dtype)
    for smoothing in (0.0, 0.1):
        for ignored in (-100, 3, 255):
            target = torch.full((5,), ignored)
            options = {"ignore_index": ignored, "reduction": reduction}
            check(logits, target, label_smoothing=smoothing, **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty_batch(isa, reduction):
    for shape in ((0, 7), (0, 1), (0, 3, 2), (3, 4, 0)):
        logits = torch.randn(shape, dtype=torch.float64)
        check(logits, torch.zeros(shape[0], *shape[2:], dtype=torch.long), reduction=reduction)


@dtypes("f64", "f32")
@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1.0, 80.0, 1e4, 1e30])
def test_magnitudes_of_logits(isa, scale, dtype):
    for classes in (2, 3, 17, 33):
        for options in ({}, {"reduction": "none"}, {"label_smoothing": 0.1}):
            logits, target = draw(9, classes, dtype, scale=scale)
            check(logits, target, **options)
            check(logits + scale, target, **options)


@dtypes("f64", "f32")
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan], ids=str)
def test_special_logits(isa, value, dtype):
    """Each class in turn special, alone, in pairs and in a whole row."""
    for classes in (1, 2, 5, 17, 33):
        for place in {0, 1 % classes, classes // 2, classes - 1}:
            for columns in ([place], [place, -1], list(range(classes))):
                logits, target = draw(classes, classes, dtype)
                logits[1 % classes, columns] = value
                for options in ({"reduction": "none"}, {"reduction": "sum"}):
                    check(logits, torch.arange(classes), **options)
                    check(logits, target, label_smoothing=0.1, **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck_and_gradgradcheck(isa, reduction):
    logits, target = draw(5, 4, torch.float64)
    logits.requires_grad_()
    target[1] = IGNORE
    for weight in (None, torch.rand(4, dtype=torch.float64)):
        for smoothing in (0.0, 0.2):

            def loss(x, weight=weight, smoothing=smoothing):
                return functional.cross_entropy(
                    x,
                    target,
                    weight,
                    ignore_index=IGNORE,
                    reduction=reduction,
                    label_smoothing=smoothing,
                )

            assert gradcheck(loss, [logits])
            assert gradgradcheck(loss, [logits])


def test_deprecated_arguments_mean_what_they_meant():
    logits, target = draw(5, 4, torch.float64)
    for size_average, reduce in itertools.product((None, True, False), repeat=2):
        results = []
        for f in (functional.cross_entropy, F.cross_entropy):
            deprecated = (size_average, reduce) != (None, None)
            with pytest.warns() if deprecated else contextlib.nullcontext():
                results.append(f(logits, target, None, size_average, -100, reduce, "sum"))
        torch.testing.assert_close(*results, rtol=1e-12, atol=0)


def test_positional_arguments():
    logits, target = draw(6, 4, torch.float64)
    weight = torch.rand(4, dtype=torch.float64)
    args = (logits, target, weight, None, 1, None, "none", 0.25)
    torch.testing.assert_close(functional.cross_entropy(*args), F.cross_entropy(*args))


def test_autograd_rules():
    logits, target = draw(6, 4, torch.float32)
    assert not functional.cross_entropy(logits, target).requires_grad
    logits.requires_grad_()
    with torch.no_grad():
        assert not functional.cross_entropy(logits, target).requires_grad
    loss = functional.cross_entropy(logits, target)
    loss.backward(retain_graph=True)
    first = logits.grad.clone()
    (3 * loss).backward()
    torch.testing.assert_close(logits.grad, 4 * first)
    with pytest.raises(RuntimeError, match="a second time"):
        loss.backward()
    # PyTorch keeps its own log_softmax, not the logits, which may therefore be changed.
    logits.grad = None
    loss = functional.cross_entropy(logits, target)
    with torch.no_grad():
        logits.add_(1.0)
    loss.backward()
    torch.testing.assert_close(logits.grad, first)


@dtypes(*DTYPES)
def test_same_bits_each_time(isa, threads, dtype):
    logits, target = draw(1031, 33, dtype)
    for reduction in REDUCTIONS:
        results = [
            evaluate(
                lambda x, r=reduction: functional.cross_entropy(x, target, reduction=r).sum(),
                (relayout(logits, layout),),
                torch.ones((), dtype=dtype),
            )
            for layout in ("contiguous", "misaligned", "contiguous")
        ]
        for other in results[1:]:
            assert all(torch.equal(other[name], results[0][name]) for name in other), reduction


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, 0.0])
def test_ignored_rows_have_no_gradient_to_differentiate(weight, smoothing):
    """0 as in PyTorch, not 0 / 0: with create_graph too."""
    target = torch.full((4,), -100) if weight is None else torch.tensor([0, 1, 2, -100])
    options = {"label_smoothing": smoothing}
    if weight is not None:
        options["weight"] = torch.full((3,), weight)
    for create_graph in (False, True):
        logits = torch.randn(4, 3, requires_grad=True)
        ours, torchs = (
            torch.autograd.grad(
                f(logits, target, **options), logits, create_graph=create_graph, allow_unused=True
            )[0]
            for f in (functional.cross_entropy, F.cross_entropy)
        )
        torch.testing.assert_close(ours[3], torchs[3], rtol=0, atol=0, equal_nan=True)
        assert torch.equal(ours[3], torch.zeros(3))
