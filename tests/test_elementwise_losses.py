"""The elementwise losses against torch.nn.functional's: accuracy, layouts, odd numbers, autograd.

Forms, errors and transforms: test_loss_forms.py.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import (
    DTYPES,
    LAYOUTS,
    assert_as_accurate,
    assert_equal_to,
    dtypes,
    evaluate,
    exactly,
    relayout,
)

from mlp_ext import functional, reference

NAMES = ("mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss", "binary_cross_entropy_with_logits")
BCE = NAMES[-1]
REDUCTIONS = ("mean", "sum", "none")
names = pytest.mark.parametrize("name", NAMES)
reductions = pytest.mark.parametrize("reduction", REDUCTIONS)
OWN = "ElementwiseLossBackward"


def options_for(name, shape, dtype):
    """The options that the kernels know, each alone and together."""

    def draw(*sizes):
        return (torch.rand(sizes, dtype=torch.float64) + 0.2).to(dtype)

    yield {}
    if name in ("mse_loss", "l1_loss"):
        yield {"weight": draw(*shape)}
    if name == "huber_loss":
        yield {"delta": 0.3}
        yield {"delta": 2.0, "weight": draw(*shape)}
    if name == "smooth_l1_loss":
        yield from ({"beta": beta} for beta in (0.0, 0.3, 2.0))
    if name == BCE:
        columns = shape[-1:]
        yield {"weight": draw(*columns)}
        yield {"weight": draw(*shape), "pos_weight": draw()}
        yield {"pos_weight": draw(*columns)}
        yield {"pos_weight": draw(1), "weight": draw(1)}


def draw(name, shape, dtype, scale=2.0):
    x = (torch.randn(shape, dtype=torch.float64) * scale).to(dtype)
    y = torch.rand(shape, dtype=torch.float64) if name == BCE else torch.randn(shape).double()
    return x, y.to(dtype)


def check(name, x, y, floor_eps=8, **options):
    """Loss and both gradients (the target's where it is no probability) against PyTorch's."""
    dtype = x.dtype

    def of(module, wide=False):
        given = {k: v.double() if wide and torch.is_tensor(v) else v for k, v in options.items()}
        if name == BCE:  # the node of ours has no gradient of the target
            fixed = y.double() if wide else y
            return lambda x: getattr(module, name)(x, fixed, **given)
        return lambda x, y: getattr(module, name)(x, y, **given)

    tensors = (x,) if name == BCE else (x, y)
    dy = torch.randn(of(F)(*tensors).shape, dtype=torch.float64).to(dtype)
    label = f"{name} {tuple(x.shape)} { {k: v for k, v in options.items() if k != 'weight'} }"
    actual, torchs = (evaluate(of(module), tensors, dy) for module in (functional, F))
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    assert of(functional)(*leaves).grad_fn.name() == OWN, label
    if dtype == torch.float64:
        return assert_equal_to(label, actual, torchs, 1e-12)
    exact = evaluate(of(F, wide=True), exactly(tensors), dy.double())
    floor = torch.finfo(dtype).eps * (floor_eps if dtype == torch.float32 else 1)
    return assert_as_accurate(label, actual, torchs, exact, floor)


SHAPES = [
    (),
    (1,),
    (7,),
    (2, 1),
    (64, 1),
    (5, 3),
    (4, 16),
    (3, 17),
    (130, 33),
    (2, 3, 4),
    (1, 1025),
]


@names
@dtypes("f64", "f32", "bf16", "f16")
def test_shapes_and_options(isa, name, dtype):
    for shape in SHAPES:
        for options in options_for(name, shape, dtype):
            if not shape and "pos_weight" in options and options["pos_weight"].dim() > 0:
                continue  # larger than the input: PyTorch's operators
            for reduction in REDUCTIONS:
                check(name, *draw(name, shape, dtype), reduction=reduction, **options)


@names
def test_the_formulas_of_the_reference(name):
    x, y = draw(name, (6, 5), torch.float64)
    for options in options_for(name, (6, 5), torch.float64):
        if options.get("beta") == 0:
            continue  # the formula divides by it; PyTorch means l1_loss
        for reduction in REDUCTIONS:
            results = [
                evaluate(
                    lambda x, m=m, o=options, r=reduction: getattr(m, name)(x, y, reduction=r, **o),
                    (x,),
                    None if reduction == "none" else torch.ones((), dtype=torch.float64),
                )
                for m in (functional, reference)
            ]
            assert_equal_to(f"{name} {options.keys()} {reduction}", *results, 1e-12)


@names
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts(isa, name, layout):
    for shape in ((9, 17), (16, 3), (1, 10), (6, 1)):
        x, y = draw(name, shape, torch.float64)
        for options in options_for(name, shape, torch.float64):
            for reduction in ("mean", "none"):
                check(name, relayout(x, layout), y, reduction=reduction, **options)
                check(name, x, relayout(y, layout), reduction=reduction, **options)
            laid = {k: relayout(v, layout) if torch.is_tensor(v) else v for k, v in options.items()}
            check(name, x, y, **laid)


@names
def test_grad_output_layouts(isa, name):
    x, y = draw(name, (9, 17), torch.float64)
    for use in (torch.sum, lambda o: o[::2].sum(), lambda o: o.t().cumsum(1).sum()):
        results = [
            evaluate(
                lambda x, m=m, use=use: use(getattr(m, name)(x, y, reduction="none")),
                (x,),
                torch.ones((), dtype=torch.float64),
            )
            for m in (functional, F)
        ]
        assert_equal_to(name, *results, 1e-12)


@names
@reductions
def test_empty(isa, name, reduction):
    for shape in ((0,), (0, 7), (3, 0)):
        for module in (functional, F):
            x, y = torch.zeros(shape, requires_grad=True), torch.zeros(shape)
            loss = getattr(module, name)(x, y, reduction=reduction)
            assert loss.shape == (shape if reduction == "none" else ())
            assert loss.isnan().all() if reduction == "mean" else loss.sum() == 0
            loss.sum().backward()
            assert x.grad.shape == shape


@names
@dtypes("f64", "f32")
@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1.0, 80.0, 1e4, 1e18])
def test_magnitudes(isa, name, scale, dtype):
    for reduction in ("sum", "none"):
        x, y = draw(name, (9, 17), dtype, scale=scale)
        check(name, x, y, reduction=reduction)
        if name != BCE:
            check(name, x, y * scale, reduction=reduction)
        else:
            check(name, x, y.round(), reduction=reduction)


@names
@dtypes("f64", "f32")
def test_special_numbers(isa, name, dtype):
    """Every pair of an odd input and an odd target, unreduced: NaN and Inf where PyTorch has them.

    But no infinite target of binary cross-entropy, which is no probability: there PyTorch's own
    formulas with and without pos_weight differ.
    """
    odd = [0.0, -0.0, 1.0, -1.0, 0.5, math.inf, -math.inf, math.nan, 1e30, -1e30, 1e-40]
    targets = [v for v in odd if name != BCE or not math.isinf(v)]
    for value in odd:
        x = torch.full((len(targets),), value, dtype=dtype)
        y = torch.tensor(targets, dtype=dtype)
        for options in options_for(name, x.shape, dtype):
            check(name, x, y, reduction="none", **options)


@names
def test_sums_over_many_elements(isa, threads, name):
    """All of one sign, so that a sum in one float32 would drift."""
    x, y = draw(name, (300_001,), torch.float32)
    for reduction in ("mean", "sum"):
        check(name, x, y, floor_eps=1, reduction=reduction)


def error_in_eps(got, exact):
    eps = torch.finfo(torch.float32).eps
    return ((got - exact).square().mean().sqrt() / exact.square().mean().sqrt()).item() / eps


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0], ids="scale{:g}".format)
@names
def test_accuracy(isa, name, scale):
    """Root mean square over many elements: at most twice PyTorch's, or 1 eps."""
    x, y = draw(name, (4096,), torch.float32, scale)
    for options in ({}, {"pos_weight": torch.tensor(3.0)}) if name == BCE else ({},):

        def unreduced(function, x, y, options=options):
            given = {k: v.to(x.dtype) for k, v in options.items()}
            results = evaluate(lambda x: function(x, y, reduction="none", **given), (x,), y * 0 + 1)
            return results["output"], results["grad0"]

        exact = unreduced(getattr(F, name), x.double(), y.double())
        pairs = (unreduced(getattr(module, name), x, y) for module in (functional, F))
        for what, ours, theirs, truth in zip(("loss", "gradient"), *pairs, exact, strict=True):
            mine, torchs = error_in_eps(ours, truth), error_in_eps(theirs, truth)
            assert mine <= max(2 * torchs, 1), f"{what}: {mine:.2f} eps, PyTorch's {torchs:.2f}"


@names
def test_autograd_rules(name):
    loss_of = getattr(functional, name)
    x, y = draw(name, (6, 4), torch.float32)
    assert not loss_of(x, y).requires_grad
    x.requires_grad_()
    with torch.no_grad():
        assert not loss_of(x, y).requires_grad
    loss = loss_of(x, y)
    loss.backward(retain_graph=True)
    first = x.grad.clone()
    x.grad.mul_(7)  # the user's own: what the graph keeps must not change with it
    (3 * loss).backward()
    torch.testing.assert_close(x.grad, 10 * first)
    with pytest.raises(RuntimeError, match="a second time"):
        loss.backward()


def test_gradient_of_the_target_alone():
    for name in NAMES[:-1]:
        x, y = draw(name, (6, 4), torch.float64)
        y.requires_grad_()
        grads = [torch.autograd.grad(getattr(m, name)(x, y), y)[0] for m in (functional, F)]
        torch.testing.assert_close(*grads)
    x.requires_grad_()
    loss = functional.mse_loss(x, x.detach() + 1)
    assert loss.grad_fn.name() == OWN
    same = functional.mse_loss(x, x)  # one leaf twice: its gradients cancel
    assert torch.equal(torch.autograd.grad(same, x)[0], torch.zeros_like(x))


def test_what_is_left_to_pytorch():
    """The documented cases: not a node of ours, the same result."""
    x, y = draw(BCE, (6, 4), torch.float32)
    x.requires_grad_()
    for name, options in (
        (BCE, {"pos_weight": torch.rand(6, 4)}),
        ("mse_loss", {"weight": torch.rand(6, 4).requires_grad_()}),
    ):
        losses = [getattr(m, name)(x, y, **options) for m in (functional, F)]
        assert losses[0].grad_fn.name() != OWN
        torch.testing.assert_close(*losses)
    assert functional.binary_cross_entropy_with_logits(x, y.requires_grad_()).grad_fn.name() != OWN
    assert functional.mse_loss(x, y.double()).dtype == torch.float64


@names
@dtypes(*DTYPES)
def test_same_bits_each_time(isa, threads, name, dtype):
    x, y = draw(name, (1031, 33), dtype)
    for reduction in REDUCTIONS:
        results = [
            evaluate(
                lambda x, r=reduction: getattr(functional, name)(x, y, reduction=r).sum(),
                (relayout(x, layout),),
                torch.ones((), dtype=dtype),
            )
            for layout in ("contiguous", "misaligned", "contiguous")
        ]
        for other in results[1:]:
            assert all(torch.equal(other[key], results[0][key]) for key in other), reduction


@names
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_without_a_graph_break(name, dynamic):
    torch._dynamo.reset()
    loss_of = getattr(functional, name)
    compiled = torch.compile(loss_of, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for shape in ((6, 4), (9, 4)):
        x, y = draw(name, shape, torch.float32)
        for leaf in (x, x.clone().requires_grad_()):
            outs = [f(leaf, y, reduction="none") for f in (compiled, loss_of)]
            torch.testing.assert_close(*outs)
            if leaf.requires_grad:
                grads = [torch.autograd.grad(out.sum(), leaf)[0] for out in outs]
                torch.testing.assert_close(*grads)
