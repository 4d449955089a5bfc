"""The losses on PyTorch's own sample inputs (torch.testing's op_db), and on what it refuses: the
same forms, results, gradients, warnings and exceptions."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from cases import assert_as_accurate, assert_equal_to, dtypes, outcome
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.testing._internal.common_methods_invocations import op_db

from mlp_ext import functional

NAMES = (
    "cross_entropy",
    "binary_cross_entropy_with_logits",
    "mse_loss",
    "l1_loss",
    "huber_loss",
    "smooth_l1_loss",
)
INFOS = {name: next(o for o in op_db if o.name == f"nn.functional.{name}") for name in NAMES}
names = pytest.mark.parametrize("name", NAMES)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def samples(name, dtype, requires_grad=True):
    for draw in (INFOS[name].sample_inputs, INFOS[name].reference_inputs):
        for sample in draw("cpu", dtype, requires_grad=requires_grad):
            yield (sample.input, *sample.args), sample.kwargs


def leaves_of(args, kwargs):
    tensors = [t for t in (*args, *kwargs.values()) if torch.is_tensor(t)]
    return [t for t in tensors if t.requires_grad]


def in_double(value):
    if torch.is_tensor(value) and value.is_floating_point():
        return value.detach().double().requires_grad_(value.requires_grad)
    return value


def results(function, args, kwargs, weights=None):
    """The loss, and the gradients of its sum (weighed, so that rows differ)."""
    out = function(*args, **kwargs)
    leaves = leaves_of(args, kwargs)
    values = {"output": out.detach()}
    if leaves:
        dy = torch.ones_like(out) if weights is None else weights.to(out.dtype).view_as(out)
        grads = torch.autograd.grad(out, leaves, dy, allow_unused=True)
        values |= {f"grad{i}": g for i, g in enumerate(grads) if g is not None}
    return values


def exactly(sample):
    args, kwargs = sample
    return tuple(map(in_double, args)), {k: in_double(v) for k, v in kwargs.items()}


@names
@dtypes("f64", "f32", "bf16")
def test_samples_of_pytorch(isa, name, dtype):
    ours, theirs = getattr(functional, name), getattr(F, name)
    number = 0
    for args, kwargs in samples(name, dtype):
        label = f"{name} {[tuple(a.shape) for a in args]} {kwargs}"
        dy = torch.randn(theirs(*args, **kwargs).shape, dtype=torch.float64)
        actual, expected = (results(f, args, kwargs, dy) for f in (ours, theirs))
        if dtype == torch.float64:
            assert_equal_to(label, actual, expected, 1e-12)
        else:
            exact = results(theirs, *exactly((args, kwargs)), dy.to(dtype))
            floor = torch.finfo(dtype).eps * (16 if dtype == torch.float32 else 2)
            assert_as_accurate(label, actual, expected, exact, floor)
        number += 1
    assert number >= 10


@names
def test_derivatives_of_the_samples(name):
    """Both orders of backward, forward mode, forward mode over backward; with respect to all that
    wants a gradient."""
    function = getattr(functional, name)
    for args, kwargs in samples(name, torch.float64):
        places = [i for i, a in enumerate(args) if a.requires_grad]
        if not places or any(torch.is_tensor(v) and v.requires_grad for v in kwargs.values()):
            continue

        def loss(*leaves, args=args, kwargs=kwargs, places=places):
            values = list(args)
            for i, leaf in zip(places, leaves, strict=True):
                values[i] = leaf
            return function(*values, **kwargs)

        leaves = [args[i] for i in places]
        if any(leaf.numel() == 0 for leaf in leaves):
            continue
        assert gradcheck(loss, leaves, check_forward_ad=True, check_batched_grad=True)
        assert gradgradcheck(loss, leaves)


@names
def test_torch_func_of_the_samples(name):
    ours, theirs = getattr(functional, name), getattr(F, name)
    for args, kwargs in samples(name, torch.float64, requires_grad=False):
        if args[0].numel() == 0:
            continue
        for transform in (torch.func.grad, torch.func.jacrev):
            a, b = (
                transform(lambda *a, f=f, k=kwargs: f(*a, **k).sum())(*args) for f in (ours, theirs)
            )
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, equal_nan=True)
        xs = torch.stack([args[0], args[0].flip(0)])
        a, b = (
            torch.func.vmap(lambda x, f=f, a=args, k=kwargs: f(x, *a[1:], **k))(xs)
            for f in (ours, theirs)
        )
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, equal_nan=True)
        tangent = torch.randn_like(args[0])
        a, b = (
            torch.func.jvp(
                lambda x, f=f, a=args, k=kwargs: f(x, *a[1:], **k), (args[0],), (tangent,)
            )
            for f in (ours, theirs)
        )
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, equal_nan=True)


def t(*shape, dtype=torch.float32, device="cpu"):
    return torch.rand(shape, dtype=torch.float64).to(dtype).to(device)


# Arguments that are odd or wrong, for the losses that compare elements.
ODD = {
    "target_broadcasts": lambda: ((t(4, 5), t(5)), {}),
    "input_broadcasts": lambda: ((t(1, 5), t(4, 5)), {}),
    "column_against_row": lambda: ((t(4, 1), t(4)), {}),
    "shapes_do_not_fit": lambda: ((t(4, 5), t(4, 6)), {}),
    "target_is_double": lambda: ((t(4, 5), t(4, 5, dtype=torch.float64)), {}),
    "input_is_double": lambda: ((t(4, 5, dtype=torch.float64), t(4, 5)), {}),
    "target_is_half": lambda: ((t(4, 5), t(4, 5, dtype=torch.float16)), {}),
    "target_is_long": lambda: ((t(4, 5), t(4, 5).long()), {}),
    "all_long": lambda: ((t(4, 5).long(), t(4, 5).long()), {}),
    "complex": lambda: ((t(4, 5) + 0j, t(4, 5) + 0j), {}),
    "booleans": lambda: ((t(4, 5) > 0, t(4, 5) > 0), {}),
    "empty": lambda: ((t(0, 5), t(0, 5)), {}),
    "empty_unreduced": lambda: ((t(0, 5), t(0, 5)), {"reduction": "none"}),
    "numbers": lambda: ((t(), t()), {}),
    "lists": lambda: (([1.0], [1.0]), {}),
    "target_is_a_number": lambda: ((t(4), 1.0), {}),
    "target_is_none": lambda: ((t(4), None), {}),
    "meta": lambda: ((t(4, 5, device="meta"), t(4, 5, device="meta")), {}),
    "input_is_meta": lambda: ((t(4, 5, device="meta"), t(4, 5)), {}),
    "reduction_is_unknown": lambda: ((t(4, 5), t(4, 5)), {"reduction": "max"}),
    "reduction_is_none": lambda: ((t(4, 5), t(4, 5)), {"reduction": None}),
    "weight": lambda: ((t(4, 5), t(4, 5)), {"weight": t(4, 5)}),
    "weight_broadcasts": lambda: ((t(4, 5), t(4, 5)), {"weight": t(5)}),
    "weight_is_longer": lambda: ((t(4, 5), t(4, 5)), {"weight": t(3, 4, 5)}),
    "weight_does_not_fit": lambda: ((t(4, 5), t(4, 5)), {"weight": t(6)}),
    "weight_is_double": lambda: ((t(4, 5), t(4, 5)), {"weight": t(4, 5, dtype=torch.float64)}),
    "weight_is_long": lambda: ((t(4, 5), t(4, 5)), {"weight": torch.ones(4, 5).long()}),
    "weight_is_a_list": lambda: ((t(4, 5), t(4, 5)), {"weight": [1.0]}),
    "weight_is_zero": lambda: ((t(4, 5), t(4, 5)), {"weight": torch.zeros(4, 5)}),
    "weight_wants_a_gradient": lambda: ((t(4, 5), t(4, 5)), {"weight": t(4, 5).requires_grad_()}),
    "pos_weight": lambda: ((t(4, 5), t(4, 5)), {"pos_weight": t(5)}),
    "pos_weight_of_each": lambda: ((t(4, 5), t(4, 5)), {"pos_weight": t(4, 5)}),
    "pos_weight_of_rows": lambda: ((t(4, 5), t(4, 5)), {"pos_weight": t(4, 1)}),
    "pos_weight_of_one": lambda: ((t(4, 5), t(4, 5)), {"pos_weight": t(1)}),
    "pos_weight_is_larger": lambda: ((t(5), t(5)), {"pos_weight": t(1, 1)}),
    "pos_weight_does_not_fit": lambda: ((t(4, 5), t(4, 5)), {"pos_weight": t(4)}),
    "pos_weight_is_double": lambda: ((t(4, 5), t(4, 5)), {"pos_weight": t(5).double()}),
    "delta_0": lambda: ((t(4, 5), t(4, 5)), {"delta": 0.0}),
    "delta_is_negative": lambda: ((t(4, 5), t(4, 5)), {"delta": -1.0}),
    "delta_is_an_integer": lambda: ((t(4, 5), t(4, 5)), {"delta": 2}),
    "delta_is_text": lambda: ((t(4, 5), t(4, 5)), {"delta": "a"}),
    "beta_0": lambda: ((t(4, 5), t(4, 5)), {"beta": 0.0}),
    "beta_is_negative": lambda: ((t(4, 5), t(4, 5)), {"beta": -1.0}),
    "beta_is_text": lambda: ((t(4, 5), t(4, 5)), {"beta": "a"}),
    "size_average": lambda: ((t(4, 5), t(4, 5)), {"size_average": False}),
    "reduce": lambda: ((t(4, 5), t(4, 5)), {"reduce": False}),
    "target_wants_a_gradient": lambda: ((t(4, 5), t(4, 5).requires_grad_()), {}),
    "target_expanded": lambda: ((t(4, 5), t(5).expand(4, 5)), {}),
    "sparse": lambda: ((t(4, 5).to_sparse(), t(4, 5)), {}),
    "negative_view": lambda: ((torch._neg_view(t(4, 5)), torch._neg_view(t(4, 5))), {}),
}


@pytest.mark.parametrize("gradient", [False, True], ids=["plain", "gradient"])
@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("name", NAMES[1:])
def test_odd_arguments(name, case, gradient):
    """The same exception or the same result and warnings; nothing changes in what was given."""
    args, kwargs = ODD[case]()
    floats = [a for a in args if torch.is_tensor(a) and (a.is_floating_point() or a.is_complex())]
    if gradient and floats and floats[0].layout is torch.strided:
        floats[0].requires_grad_()

    def run(module):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            out = getattr(module, name)(*args, **kwargs)
            values = [out.detach()]
            if out.requires_grad and not out.is_meta:
                leaves = leaves_of(args, kwargs)
                total = out.abs().sum()
                values += [
                    torch.zeros(()) if g is None else g
                    for g in torch.autograd.grad(total, leaves, allow_unused=True)
                ]
        return values, [(w.category, str(w.message)) for w in caught]

    mine, expected = outcome(lambda: run(functional)), outcome(lambda: run(F))
    both = f"ours {mine}\nPyTorch {expected}"
    assert mine[0] == expected[0], both
    if expected[0] == "raises":
        assert mine[1] is expected[1], both
    else:
        assert mine[1][1] == expected[1][1], both
        torch.testing.assert_close(
            mine[1][0], expected[1][0], rtol=1e-5, atol=1e-6, equal_nan=True, msg=both
        )
    for a in floats:
        assert a._version == 0 and a.grad is None


def test_forward_mode_of_targets_and_weights():
    """A tangent on something else than the input is seen."""
    x, y = t(4, 5, dtype=torch.float64), t(4, 5, dtype=torch.float64)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(y, torch.ones_like(y))
        for name in NAMES:
            outs = [
                forward_ad.unpack_dual(getattr(m, name)(x, dual)).tangent for m in (functional, F)
            ]
            torch.testing.assert_close(*outs)
        weight = forward_ad.make_dual(torch.ones(5).double(), torch.rand(5).double())
        for name in ("cross_entropy", "binary_cross_entropy_with_logits"):
            outs = [
                forward_ad.unpack_dual(getattr(m, name)(x, y, weight)).tangent
                for m in (functional, F)
            ]
            torch.testing.assert_close(*outs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@names
def test_autocast(name, dtype):
    x, y = t(4, 5, dtype=dtype), t(4, 5, dtype=dtype)
    options = [{}, {"reduction": "none"}]
    if name in ("mse_loss", "l1_loss", "huber_loss", "binary_cross_entropy_with_logits"):
        options.append({"weight": t(4, 5, dtype=dtype)})
    for kwargs in options:
        outs = []
        for module in (functional, F):
            leaf = x.clone().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16):
                out = getattr(module, name)(leaf, y, **kwargs)
            out.sum().backward()
            outs.append((out, leaf.grad))
        torch.testing.assert_close(*outs, rtol=2e-2, atol=2e-2)
        assert outs[0][0].dtype == outs[1][0].dtype and outs[0][1].dtype == outs[1][1].dtype


@names
def test_torch_function_is_seen(name):
    class Logged(torch.Tensor):
        seen = []

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            cls.seen.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    x = t(4, 5).as_subclass(Logged)
    assert type(getattr(functional, name)(x, t(4, 5))) is Logged
    assert getattr(F, name) in Logged.seen  # which tools know
