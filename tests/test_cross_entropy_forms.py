"""functional.cross_entropy of images and class probabilities: by kernels, and as PyTorch does."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from cases import LAYOUTS, assert_equal_to, dtypes, evaluate, relayout
from test_cross_entropy import CLASSES, REDUCTIONS, check, draw
from torch.autograd import gradcheck, gradgradcheck

from mlp_ext import functional

OWN = "CrossEntropyBackward"


def probabilities(shape, dtype):
    return torch.rand(shape, dtype=torch.float64).softmax(min(1, len(shape) - 1)).to(dtype)


def options_for(classes, dtype):
    weights = (None, (torch.rand(classes, dtype=torch.float64) + 0.2).to(dtype))
    for reduction, weight, smoothing in itertools.product(REDUCTIONS, weights, (0.0, 0.1, 1.0)):
        yield {"reduction": reduction, "weight": weight, "label_smoothing": smoothing}


@pytest.mark.parametrize("classes", CLASSES)
@dtypes("f64", "f32", "bf16")
def test_probabilities(isa, dtype, classes):
    for rows in (1, 13, 67):
        logits = draw(rows, classes, dtype)[0]
        for options in options_for(classes, dtype):
            check(logits, probabilities((rows, classes), dtype), **options)
    check(logits, torch.rand(67, classes).to(dtype))  # which do not sum to 1
    check(logits, F.one_hot(torch.arange(67) % classes, classes).to(dtype))


# (N, C, d1, ...): many pixels and few, fewer than fill a vector, of one class.
IMAGES = (
    (2, 5, 40),
    (3, 4, 2),
    (1, 3, 7, 9),
    (2, 21, 8),
    (2, 1, 3, 3),
    (5, 40, 1, 1),
    (3, 300, 17),
)


@dtypes("f64", "f32", "f16")
@pytest.mark.parametrize("shape", IMAGES, ids=str)
def test_images(isa, shape, dtype):
    rows, classes, *tail = shape
    for options in options_for(classes, dtype):
        logits, target = draw(rows, classes, dtype, leading=tuple(tail))
        check(logits, probabilities(shape, dtype), **options)
        check(logits, target, **options)
        target[0].fill_(-100)
        check(logits, target, **options)
        check(logits, target.clamp(min=0), ignore_index=0, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts(isa, layout):
    for shape in ((9, 17), (16, 3), (1, 10), (2, 5, 4, 3), (2, 5, 4, 1), (3, 2, 20)):
        logits = torch.randn(shape, dtype=torch.float64)
        target = probabilities(shape, torch.float64)
        indices = torch.randint(shape[1], (shape[0], *shape[2:]))
        last = (0, *range(2, len(shape)), 1)
        orders = [lambda t: t, lambda t, o=last: t.permute(o).contiguous().movedim(-1, 1)]
        for turn in orders:
            for reduction in ("mean", "none"):
                check(relayout(turn(logits), layout), target, reduction=reduction)
                check(logits, relayout(turn(target), layout), reduction=reduction)
                check(relayout(turn(logits), layout), indices, reduction=reduction)
                check(logits, relayout(indices.double(), layout).long(), reduction=reduction)


def test_the_kernels_take_them():
    for shape in ((4, 5), (5,), (2, 5, 3), (2, 5, 3, 40), (2, 5, 1)):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            logits = torch.randn(shape, dtype=dtype).requires_grad_()
            indices = torch.zeros((shape[0], *shape[2:]) if len(shape) > 1 else ()).long()
            for target in (indices, probabilities(shape, dtype)):
                for reduction in REDUCTIONS:
                    loss = functional.cross_entropy(logits, target, reduction=reduction)
                    assert loss.grad_fn.name() == OWN, shape


def test_what_is_left_to_pytorch():
    logits = torch.randn(4, 5, requires_grad=True)
    target = probabilities((4, 5), torch.float32)
    for other in (target.clone().requires_grad_(), target.double()):
        losses = [m.cross_entropy(logits, other) for m in (functional, F)]
        assert losses[0].grad_fn.name() != OWN and losses[0].dtype == losses[1].dtype
        torch.testing.assert_close(*losses)
    for ignored in (0, 3):
        for module in (functional, F):
            with pytest.raises(RuntimeError, match="ignore_index"):
                module.cross_entropy(logits, target, ignore_index=ignored)
    assert functional.cross_entropy(logits, target, ignore_index=-1).grad_fn.name() == OWN


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck_and_gradgradcheck(isa, reduction):
    for shape in ((5, 4), (4,), (2, 3, 9), (2, 3, 2, 2)):
        logits = torch.randn(shape, dtype=torch.float64).requires_grad_()
        weight = torch.rand(logits.shape[-1 if len(shape) == 1 else 1], dtype=torch.float64)
        indices = torch.ones((shape[0], *shape[2:]) if len(shape) > 1 else ()).long()
        for target in (probabilities(shape, torch.float64), indices):
            for options in ({}, {"label_smoothing": 0.2, "weight": weight}):

                def loss(x, target=target, options=options):
                    return functional.cross_entropy(x, target, reduction=reduction, **options)

                assert gradcheck(loss, [logits])
                assert gradgradcheck(loss, [logits])


@dtypes("f64", "f32")
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")], ids=str)
def test_special_numbers(isa, value, dtype):
    """In the logits, and NaN in the probabilities (infinite ones are none)."""
    for shape in ((6, 3), (6, 40), (2, 3, 20)):
        for place in (0, 2):
            for special in ("logits", "target") if value != value else ("logits",):
                logits = torch.randn(shape, dtype=dtype)
                target = probabilities(shape, dtype)
                (logits if special == "logits" else target)[1, place] = value
                check(logits, target, reduction="none")
                logits = torch.randn(shape, dtype=dtype)
                logits[1, place] = value
                indices = torch.arange(shape[0] * shape[-1]) % 3
                indices = indices.view(shape[0], -1)[:, : logits[0, 0].numel()]
                check(logits, indices.reshape(shape[0], *shape[2:]), reduction="none")


def test_ignored_rows_hide_what_is_in_them(isa):
    """0 and 0, whatever the logits; in a vector of rows the others do not notice."""
    for classes in (3, 40):
        logits, target = draw(37, classes, torch.float32)
        target[::5] = -100
        spoiled = logits.clone()
        spoiled[::5] = float("nan")
        for tail in (False, True):
            results = []
            for x in (logits, spoiled):
                x, y = (x.t()[None], target[None]) if tail else (x, target)
                dy = torch.ones(())
                results.append(evaluate(lambda x, y=y: functional.cross_entropy(x, y), (x,), dy))
            assert_equal_to("ignored", *results, 0)
            assert results[0]["grad0"].isfinite().all()


def test_same_bits_on_each_number_of_threads(isa):
    """Rows are cut at multiples of a vector, so only the sums of the loss may differ."""
    for logits, target in (
        draw(4099, 3, torch.float32),
        draw(3, 5, torch.float32, leading=(4001,)),
    ):
        grads = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            x = logits.clone().requires_grad_()
            functional.cross_entropy(x, target).backward()
            grads.append(x.grad)
        assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_without_a_graph_break(dynamic):
    def loss_of(x, y):
        return functional.cross_entropy(x, y, reduction="none", label_smoothing=0.1)

    for shape in ((6, 4), (9, 4), (2, 4, 9), (3, 4, 10)):
        logits = torch.randn(shape)
        for x in (logits, logits.movedim(1, -1).contiguous().movedim(-1, 1)):
            torch._dynamo.reset()
            compiled = torch.compile(loss_of, fullgraph=True, backend="aot_eager", dynamic=dynamic)
            for y in (probabilities(shape, torch.float32), logits.argmax(1)):
                leaf = x.clone().requires_grad_()
                outs = [f(leaf, y) for f in (compiled, loss_of)]
                torch.testing.assert_close(*outs)
                torch.testing.assert_close(
                    *(torch.autograd.grad(out.sum(), leaf)[0] for out in outs)
                )
