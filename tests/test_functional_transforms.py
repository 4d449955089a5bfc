"""torch.func, compile, export, autocast and fake tensors over linear, mlp and cross_entropy."""

import pytest
import torch
import torch.nn.functional as F
from cases import (
    HALVES,
    activations,
    assert_as_accurate,
    assert_same_outcome,
    dtypes,
    evaluate,
    exactly,
    stack_tensors,
)
from torch._subclasses.fake_tensor import FakeTensorMode

from mlp_ext import functional, reference


def linear_of(module, activation="gelu"):
    return lambda x, w, b: module.linear(x, w, b, activation=activation)


def mlp_of(module, activation="gelu"):
    return lambda x, w, b, *rest: module.mlp(
        x, [w, *rest[::2]], [b, *rest[1::2]], activation=activation, final_activation=None
    )


def loss_of(module, activation=None):
    def loss(x, w, b):
        logits = module.linear(x, w, b)
        target = torch.arange(logits.shape[0], device=logits.device) % logits.shape[-1]
        return module.cross_entropy(logits, target, label_smoothing=0.1)

    return loss


OPS = {"linear": linear_of, "mlp": mlp_of, "cross_entropy": loss_of}
ops = pytest.mark.parametrize("op", OPS.values(), ids=OPS)


def arguments(dtype=torch.float64, rows=4, activation="gelu", op=mlp_of):
    """(x, w0, b0, w1, b1) of a 5-7-3 stack, for an op of one layer (x, w0, b0)."""
    x, parameters = stack_tensors(rows, (5, 7, 3), dtype, activation=activation)
    return (x, *parameters) if op is mlp_of else (x, *parameters[:2])


def both(op, transform, *args):
    """transform(function)(*args) with ours and with the reference must agree."""
    ours, theirs = (transform(op(module))(*args) for module in (functional, reference))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@ops
def test_batched_gradients_of_the_older_vmap(op):
    """is_grads_batched and jacobian(vectorize=True) wrap the gradient, not the call."""
    args = [a.requires_grad_() for a in arguments(op=op)]

    def batched(f):
        out = f(*args)
        dy = torch.ones(3, *out.shape, dtype=out.dtype).cumsum(0)
        return torch.autograd.grad(out, args, dy, is_grads_batched=True)

    both(op, lambda f: lambda: batched(f))
    jacobian = torch.autograd.functional.jacobian
    both(op, lambda f: lambda: jacobian(f, tuple(args), vectorize=True))


def test_lists_of_different_lengths_are_refused_everywhere():
    x, w = torch.randn(4, 5), torch.randn(3, 5)
    op = torch.ops.mlp_ext.mlp
    for biases, codes in (([None], []), ([], [0]), ([None], [99])):
        for call in (op, torch.func.vmap(op, in_dims=(0, None, None, None))):
            with pytest.raises(ValueError):
                call(x, [w], biases, codes)


@ops
def test_grad_and_vjp(op):
    args = arguments(op=op)
    grad = torch.func.grad
    both(op, lambda f: grad(lambda *a: f(*a).sum(), argnums=(0, 1, 2)), *args)
    both(op, lambda f: lambda *a: torch.func.vjp(f, *a)[1](f(*a)), *args)
    # A gradient of a gradient.
    both(op, lambda f: grad(lambda x, *a: grad(lambda x: f(x, *a).sum())(x).norm()), *args)


@ops
def test_vmap(op):
    x, *parameters = arguments(op=op)
    vmap, rest = torch.func.vmap, (None,) * len(parameters)
    xs = torch.randn(3, *x.shape, dtype=x.dtype)
    both(op, lambda f: vmap(f, in_dims=(0, *rest)), xs, *parameters)
    both(op, lambda f: vmap(f, in_dims=(2, *rest)), xs.permute(1, 2, 0), *parameters)
    # An ensemble: every parameter has its own batch dimension; then only the first one.
    ensemble = [torch.randn(3, *t.shape, dtype=t.dtype) for t in parameters]
    both(op, lambda f: vmap(f), xs, *ensemble)
    both(op, lambda f: vmap(f, in_dims=(None, 0, *rest[1:])), x, ensemble[0], *parameters[1:])


@ops
def test_gradients_of_each_sample(op):
    x, *parameters = arguments(op=op)

    def each(f):
        one = torch.func.grad(lambda w, x: f(x[None], w, *parameters[1:]).sum())
        return torch.func.vmap(one, in_dims=(None, 0))

    both(op, each, parameters[0], x)


@ops
def test_jvp_and_forward_mode(op):
    args = arguments(op=op)
    tangents = tuple(torch.randn_like(t) for t in args)
    both(op, lambda f: lambda *a: torch.func.jvp(f, a, tangents), *args)
    both(op, lambda f: lambda *a: torch.func.jacfwd(f)(*a), *args)

    def dual(f):
        def run(*a):
            with torch.autograd.forward_ad.dual_level():
                duals = map(torch.autograd.forward_ad.make_dual, a, tangents)
                return tuple(torch.autograd.forward_ad.unpack_dual(f(*duals)))

        return run

    both(op, dual, *args)


@ops
def test_jacrev_and_hessian(op):
    args = arguments(rows=2, op=op)
    both(op, torch.func.jacrev, *args)
    both(op, lambda f: torch.func.hessian(lambda *a: f(*a).sum(), argnums=1), *args)


@ops
def test_old_style_jacobian_and_hessian_product(op):
    x, *parameters = arguments(rows=2, op=op)
    old = torch.autograd.functional
    both(op, lambda f: lambda *a: old.jacobian(f, a), x, *parameters)
    both(op, lambda f: lambda x: old.hvp(lambda x: f(x, *parameters).sum(), x, x), x)


def compiled_equals_eager(function, args, **options):
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, **options)
    for rows in (args[0], args[0][:-1]):  # the second size makes it a dynamic shape
        dy = torch.ones_like(function(rows, *args[1:]))
        results = [evaluate(f, (rows, *args[1:]), dy) for f in (compiled, function)]
        torch.testing.assert_close(*results)


@ops
def test_compile_aot_eager(op):
    compiled_equals_eager(op(functional), arguments(op=op), backend="aot_eager")


@activations(("relu", None, "softplus"))
def test_compile_activations(activation):
    args = arguments(activation=activation)
    compiled_equals_eager(mlp_of(functional, activation), args, backend="aot_eager", dynamic=True)


def test_compile_inductor():
    """The default backend, ops of ours between ops of PyTorch."""

    def network(x, *parameters):
        h = functional.linear_relu(x * 2, *parameters[:2]).sin()
        logits = functional.mlp(h, parameters[2:3], parameters[3:4])
        return functional.cross_entropy(logits, torch.arange(x.shape[0]) % 3)

    compiled_equals_eager(network, arguments(torch.float32, activation="relu"))


def test_compile_without_gradients():
    torch._dynamo.reset()
    for op in OPS.values():
        f, args = op(functional), arguments(torch.float32, op=op)
        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            torch.testing.assert_close(compiled(*args), f(*args))


def test_export():
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.ParameterList(arguments(torch.float32)[1:])

        def forward(self, x):
            h = functional.linear(x, self.inner[0], self.inner[1], activation="silu")
            return functional.mlp(h, [self.inner[2]], [self.inner[3]], final_activation="tanh")

    network, x = Network(), torch.randn(4, 5)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(network, (x,), dynamic_shapes=({0: batch},))
    for rows in (4, 9):
        x = torch.randn(rows, 5)
        torch.testing.assert_close(exported.module()(x), network(x))


@ops
def test_fake_and_meta_tensors(op):
    """Shapes and dtypes without data: nothing is read, nothing is written."""
    args = arguments(torch.float32, op=op)
    expected = op(reference)(*args)
    with FakeTensorMode() as mode:
        out = op(functional)(*(mode.from_tensor(t) for t in args))
    assert out.shape == expected.shape and out.dtype == expected.dtype
    assert out.stride() == expected.stride() and out.device == expected.device
    meta = op(functional)(*(t.to("meta") for t in args))
    assert meta.is_meta and meta.shape == expected.shape and meta.dtype == expected.dtype


ODD_SHAPES = {
    "vector": ((5,), (3, 5), (3,)),
    "rows": ((2, 4, 5), (3, 5), None),
    "weight_1_d": ((4, 5), (5,), None),
    "bias_broadcasts": ((4, 5), (3, 5), (1,)),
    "bias_matrix": ((4, 5), (3, 5), (4, 3)),
    "no_features": ((4, 0), (3, 0), (3,)),
    "no_rows": ((0, 5), (3, 5), (3,)),
    "widths_differ": ((4, 5), (3, 6), None),
    "bias_differs": ((4, 5), (3, 5), (4,)),
    "weight_3_d": ((4, 5), (2, 3, 5), None),
}


@pytest.mark.parametrize("shapes", ODD_SHAPES.values(), ids=ODD_SHAPES)
def test_fake_kernels_know_the_shape_rules(shapes):
    """A compiled program gets the right shape, or the refusal, when it is traced."""
    args = [None if s is None else torch.randn(s) for s in shapes]
    for grad in (False, True):

        def traced(module, grad=grad):
            with FakeTensorMode() as mode:
                fake = [t if t is None else mode.from_tensor(t).requires_grad_(grad) for t in args]
                out = module.linear(*fake, activation="gelu")
            return [torch.empty(out.shape, dtype=out.dtype, device="meta")]

        assert_same_outcome("", lambda f=traced: f(functional), lambda f=traced: f(reference))


@dtypes(*HALVES)
@ops
def test_autocast(op, dtype):
    """dtypes as through F.linear, values at least as good as PyTorch's, gradients in float32."""
    args = arguments(torch.float32, rows=33, op=op)
    dy = torch.ones_like(op(reference)(*args))
    exact = evaluate(op(reference), exactly(args), dy.double())
    results = []
    for module in (functional, reference):

        def run(*a, module=module):
            with torch.autocast("cpu", dtype):
                return op(module)(*a)

        results.append(evaluate(run, args, dy.to(run(*args).dtype)))
        assert results[-1]["grad0"].dtype == torch.float32
    assert_as_accurate("", *results, exact, floor=2 * torch.finfo(dtype).eps)


def test_autocast_leaves_alone_what_pytorch_does():
    x, w, b = arguments(torch.float32)[:3]
    target = torch.zeros(4, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        for args in ((x.double(), w.double(), b.double()), (x, w.bfloat16(), b), (x, w, None)):
            assert functional.linear(*args, activation="relu").dtype == F.linear(*args).dtype
        with torch.autocast("cpu", enabled=False):
            assert functional.linear(x, w, b).dtype == torch.float32
        logits = functional.linear(x, w, b)
        loss = functional.cross_entropy(logits, target)
        assert loss.dtype == F.cross_entropy(logits, target).dtype
    assert functional.linear(x, w, b).dtype == torch.float32
