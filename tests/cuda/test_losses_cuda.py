"""The losses on CUDA against torch.nn.functional's on the same device: every form, place of a row,
dtype and layout; values, gradients and second derivatives.

With MLP_EXT_TEST_DEVICE=cpu, for the build of tests/simt/stand_in.py, where CPU tensors stand for
CUDA tensors: all but what needs a GPU.
"""

import itertools
import os

import pytest
import torch
import torch.nn.functional as F
from cases import LAYOUTS, assert_as_accurate, assert_equal_to, dtypes, evaluate, relayout
from torch.autograd import gradcheck, gradgradcheck

from mlp_ext import functional

DEVICE = os.getenv("MLP_EXT_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU that CUDA can use"
    ),
]
needs_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU")
every_type = dtypes("f64", "f32", "bf16", "f16")
REDUCTIONS = ("mean", "sum", "none")
# In registers of some lanes of a warp, of a whole one, over a block.
CLASSES = (1, 2, 3, 4, 5, 8, 10, 16, 17, 33, 64, 129, 300, 1000, 1024, 1025, 2056)
NAMES = ("mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss", "binary_cross_entropy_with_logits")
BCE = NAMES[-1]
names = pytest.mark.parametrize("name", NAMES)


def check(name, tensors, dtype, **options):
    """Ours of `tensors` (the input first), by the kernels, against torch's."""
    wide = {k: v.double() if torch.is_tensor(v) else v for k, v in options.items()}
    x, target = tensors[0], tensors[1]
    exact_target = target.double() if target.is_floating_point() else target
    ours = getattr(functional, name)
    theirs = getattr(F, name)
    assert ours(x.detach().requires_grad_(), target, **options).grad_fn.name() in (
        "CrossEntropyBackward",
        "ElementwiseLossBackward",
    )
    dy = torch.randn(theirs(x, target, **options).shape, dtype=torch.float64).to(dtype).to(DEVICE)
    label = f"{name} {tuple(x.shape)} {x.stride()} {options}"
    actual = evaluate(lambda t: ours(t, target, **options), (x,), dy)
    torchs = evaluate(lambda t: theirs(t, target, **options), (x,), dy)
    if dtype == torch.float64:
        return assert_equal_to(label, actual, torchs, 1e-12)
    exact = evaluate(lambda t: theirs(t, exact_target, **wide), (x.double(),), dy.double())
    floor = torch.finfo(dtype).eps * (8 if dtype == torch.float32 else 1)
    return assert_as_accurate(label, actual, torchs, exact, floor)


def logits_of(dtype, *shape):
    return (torch.randn(shape, dtype=torch.float64) * 2).to(dtype).to(DEVICE)


def classes_of(classes, *shape):
    return torch.randint(classes, shape).to(DEVICE)


def probabilities_of(logits):
    return torch.randn(logits.shape).softmax(1).to(logits)


@pytest.mark.parametrize("classes", CLASSES)
@every_type
def test_class_indices(dtype, classes):
    rows = 70 if classes < 100 else 5
    x, target = logits_of(dtype, rows, classes), classes_of(classes, rows)
    weight = (torch.rand(classes) + 0.2).to(x)
    for reduction, w in itertools.product(REDUCTIONS, (None, weight)):
        check("cross_entropy", (x, target), dtype, reduction=reduction, weight=w)


@pytest.mark.parametrize("classes", CLASSES)
@every_type
def test_probabilities(dtype, classes):
    x = logits_of(dtype, 70 if classes < 100 else 5, classes)
    for reduction, smoothing in itertools.product(REDUCTIONS, (0.0, 0.1)):
        options = {"reduction": reduction, "label_smoothing": smoothing}
        check("cross_entropy", (x, probabilities_of(x)), dtype, **options)


@pytest.mark.parametrize("classes", (10, 1500))
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_forms(reduction, classes):
    x, target = logits_of(torch.float64, 20, classes), classes_of(classes, 20)
    target[::3] = 2
    weight = (torch.rand(classes) + 0.2).to(x)
    for w, ignored, smoothing in itertools.product((None, weight), (-100, 2), (0.0, 0.1, 1.0)):
        options = {"weight": w, "ignore_index": ignored, "label_smoothing": smoothing}
        check("cross_entropy", (x, target), x.dtype, reduction=reduction, **options)


@pytest.mark.parametrize("shape", [(3, 5, 20), (2, 7, 3, 4), (2, 21, 16, 17), (4, 6, 3)], ids=str)
@every_type
def test_images(dtype, shape):
    x = logits_of(dtype, *shape)
    target = classes_of(shape[1], shape[0], *shape[2:])
    for reduction in REDUCTIONS:
        check("cross_entropy", (x, target), dtype, reduction=reduction)
        check("cross_entropy", (x, probabilities_of(x)), dtype, reduction=reduction)
        last = x.movedim(1, -1).contiguous().movedim(-1, 1)
        check("cross_entropy", (last, target), dtype, reduction=reduction)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    for classes in (10, 33, 1030):
        x = relayout(logits_of(torch.float32, 9, classes), layout)
        check("cross_entropy", (x, classes_of(classes, 9)), x.dtype)
        check("cross_entropy", (x, relayout(probabilities_of(x), layout)), x.dtype)
    for name in NAMES:
        x, y = (relayout(torch.rand(9, 33).to(DEVICE), layout) for _ in range(2))
        check(name, (x, y), x.dtype)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("classes", (10, 40, 1100))
def test_a_target_out_of_range_is_nan(classes, reduction):
    """Without an error, which only the device could raise: its row, the sum and the mean are NaN;
    of the mean every gradient."""
    x = logits_of(torch.float32, 6, classes).requires_grad_()
    target = classes_of(classes, 6)
    target[2] = classes
    target[4] = -1
    loss = functional.cross_entropy(x, target, reduction=reduction)
    loss.sum().backward()
    bad = torch.zeros(6, dtype=torch.bool, device=DEVICE)
    bad[2] = bad[4] = True
    if reduction == "none":
        assert torch.equal(loss.isnan(), bad)
    else:
        assert loss.isnan()
    rows = x.grad.isnan()
    expected = torch.ones_like(bad) if reduction == "mean" else bad
    assert torch.equal(rows.all(1), expected) and torch.equal(rows.any(1), expected)


def test_a_mean_over_nothing_is_nan():
    x, target = logits_of(torch.float32, 4, 5), torch.full((4,), -100).to(DEVICE)
    assert functional.cross_entropy(x, target).isnan()
    assert functional.cross_entropy(x, target, reduction="sum") == 0


def elementwise_options(name, shape, dtype):
    def draw(*sizes):
        return (torch.rand(sizes, dtype=torch.float64) + 0.2).to(dtype).to(DEVICE)

    yield {}
    if name in ("mse_loss", "l1_loss"):
        yield {"weight": draw(*shape)}
    if name == "huber_loss":
        yield {"delta": 2.0, "weight": draw(*shape)}
    if name == "smooth_l1_loss":
        yield {"beta": 0.3}
    if name == BCE:
        yield {"weight": draw(*shape), "pos_weight": draw()}
        yield {"weight": draw(shape[-1]), "pos_weight": draw(shape[-1])}


@names
@every_type
def test_elementwise(dtype, name):
    for shape in ((1,), (7,), (33, 10), (70, 129), (5, 3, 8)):
        x, y = (logits_of(dtype, *shape) for _ in range(2))
        y = y.sigmoid() if name == BCE else y
        for reduction in REDUCTIONS:
            for options in elementwise_options(name, shape, dtype):
                check(name, (x, y), dtype, reduction=reduction, **options)


@names
def test_odd_numbers(name):
    numbers = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e4, -1e4, 90.0, 1e-40]
    x = torch.tensor(numbers, device=DEVICE)
    y = torch.full_like(x, 0.25)
    ours, theirs = (
        evaluate(lambda t, n=n: getattr(n, name)(t, y, reduction="none"), (x,), torch.ones_like(x))
        for n in (functional, F)
    )
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, equal_nan=True, msg=f"{name} {key}")


@pytest.mark.parametrize("name", ("cross_entropy", *NAMES))
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_of_gradients(name, reduction):
    x = logits_of(torch.float64, 4, 5).requires_grad_()
    y = torch.rand(4, 5, dtype=torch.float64).to(DEVICE) + 4
    target = classes_of(5, 4) if name == "cross_entropy" else y.frac() if name == BCE else y

    def loss(t):
        return getattr(functional, name)(t, target, reduction=reduction)

    assert gradcheck(loss, x)
    assert gradgradcheck(loss, x)


@pytest.mark.parametrize("factor", (1.0, 0.0, -2.5, 65536.0))
@every_type
def test_scaled_gradients(dtype, factor):
    """`grad_output` of a backward without retain_graph is multiplied in place."""
    x, target = logits_of(dtype, 33, 10).requires_grad_(), classes_of(10, 33)
    scale = torch.tensor(factor, dtype=dtype, device=DEVICE)
    kept = functional.cross_entropy(x, target)
    once, again = (torch.autograd.grad(kept, x, scale, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(once, again)
    last = torch.autograd.grad(kept, x, scale)[0]
    assert torch.equal(once, last)
    one = torch.autograd.grad(functional.cross_entropy(x, target), x)[0]
    torch.testing.assert_close(last, one * scale)


def test_same_bits():
    x, target = logits_of(torch.float32, 3000, 10), classes_of(10, 3000)
    y = logits_of(torch.float32, 3000, 10)
    for loss in (
        lambda t: functional.cross_entropy(t, target),
        lambda t: functional.mse_loss(t, y),
    ):
        results = [evaluate(loss, (x,), torch.ones((), device=DEVICE)) for _ in range(3)]
        for other in results[1:]:
            assert all(torch.equal(other[k], results[0][k]) for k in other)


@needs_gpu
def test_backward_does_not_wait_for_the_device():
    x, target = logits_of(torch.float32, 64, 10).requires_grad_(), classes_of(10, 64)
    functional.cross_entropy(x, target).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        functional.cross_entropy(x, target).backward()
        functional.mse_loss(x, x.detach()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_tensors_of_two_devices_raise_as_in_torch():
    x, target = logits_of(torch.float32, 4, 5), torch.randint(5, (4,))
    for pair in ((x, target), (x.cpu(), target.to(DEVICE))):
        with pytest.raises(RuntimeError) as ours:
            functional.cross_entropy(*pair)
        with pytest.raises(RuntimeError) as theirs:
            F.cross_entropy(*pair)
        assert str(ours.value) == str(theirs.value)


@needs_gpu
def test_captured_in_a_graph():
    x, target = logits_of(torch.float32, 500, 10).requires_grad_(), classes_of(10, 500)
    x.grad = torch.zeros_like(x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            functional.cross_entropy(x, target).backward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = functional.cross_entropy(x, target)
        loss.backward()
    for seed in range(3):  # the counter of finished blocks starts anew in each replay
        torch.manual_seed(seed)
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
            x.grad.zero_()
        graph.replay()
        expected = evaluate(
            lambda t: F.cross_entropy(t, target), (x,), torch.ones((), device=DEVICE)
        )
        torch.testing.assert_close(loss.detach(), expected["output"])
        torch.testing.assert_close(x.grad, expected["grad0"])
