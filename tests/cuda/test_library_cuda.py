"""What cuBLASLt multiplies (csrc/cuda/cublaslt), forced upon products of any size: every epilogue
with what our kernels do beside it, against float64."""

import math

import pytest
import torch
from cases import (
    DTYPES,
    FEW_SHAPES,
    LAYOUTS,
    activations,
    dtypes,
    linear_tensors,
    relayout,
    smooth_grad_output,
    stack_tensors,
)
from on_device import DEVICE, check_on_device, cuda, cuda_only

from mlp_ext import functional, reference
from mlp_ext._load import _C

pytestmark = cuda

# Rows of ReLU's mask that end within a byte, at a multiple of its 128 bits and behind one.
SHAPES = [*FEW_SHAPES, (63, 65, 31), (40, 128, 64), (33, 129, 200), (1, 130, 5), (130, 1, 5)]


@pytest.fixture(autouse=True)
def by_the_library():
    before = _C.force_products("library")
    yield
    _C.force_products(before)


def linear_of(activation):
    def of(module):
        return lambda x, w, b=None: module.linear(x, w, b, activation=activation)

    return of(functional), of(reference)


def stack_of(activation, final):
    def of(module):
        return lambda x, *p: module.mlp(
            x, p[::2], p[1::2], activation=activation, final_activation=final
        )

    return of(functional), of(reference)


@activations()
@dtypes(*DTYPES)
def test_linear(dtype, activation):
    for shape in SHAPES:
        for bias in (True, False):
            x, w, b = linear_tensors(shape, dtype, bias=bias)
            dy = smooth_grad_output(x, w, b, activation, dtype)
            label = f"{shape} {activation} bias={bias}"
            check_on_device(label, *linear_of(activation), (x, w, b), dy)


@pytest.mark.parametrize("final", [None, "silu"])
@activations(("relu", "gelu", "tanh"))
@dtypes(*DTYPES)
def test_stacks(dtype, activation, final):
    """Wider than what one launch takes whole: each layer's bias gradient comes with its dz, or, for
    a last layer without activation, with its weight gradient."""
    x, parameters = stack_tensors(37, (33, 136, 200, 130), dtype, activation=activation)
    dy = torch.randn(37, 130).to(dtype)
    check_on_device("", *stack_of(activation, final), (x, *parameters), dy)


@dtypes(*DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts(layout, dtype):
    for shape in ((7, 33, 17), (64, 48, 64), (130, 1, 16)):
        for places in ((0,), (1,), (2,), (3,), (0, 1, 2, 3)):
            tensors = [t.abs() for t in linear_tensors(shape, dtype)]
            tensors.append(torch.rand(shape[:2]).to(dtype))
            for place in places:
                tensors[place] = relayout(tensors[place], layout)
            check_on_device(f"{shape} {places}", *linear_of("relu"), tensors[:3], tensors[3])


@dtypes(*DTYPES)
def test_which_gradients_are_wanted(dtype):
    """The bias gradient beside the weight gradient, without one, and neither."""
    for wanted in ((0,), (1,), (2,), (0, 2), (1, 2)):
        leaves = [t.to(DEVICE) for t in linear_tensors((40, 24, 16), dtype)]
        results = []
        for function in linear_of(None):
            copies = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(leaves)]
            y = function(*copies)
            results.append(torch.autograd.grad(y.sum(), [copies[i] for i in wanted]))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs)


@dtypes(*DTYPES)
def test_nan_is_kept(dtype):
    x, w, b = (t.to(DEVICE) for t in linear_tensors((9, 35, 18), dtype))
    x[3, 4] = math.nan
    x.requires_grad_()
    y = functional.linear_relu(x, w, b)
    assert y[3].isnan().all() and not y[:3].isnan().any() and not y[4:].isnan().any()
    y.nansum().backward()
    assert not x.grad[4:].isnan().any()


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
@dtypes(*DTYPES)
def test_what_relu_stops_is_zero(dtype, value):
    """Whatever comes back to it; what it lets through stays what it is."""
    torch.manual_seed(0)
    x, weights = torch.randn(24, 40), (torch.randn(136, 40), torch.randn(130, 136))
    dy = torch.ones(24, 130)
    dy[5, 7] = value
    x, dy, *weights = (t.to(DEVICE, dtype) for t in (x, dy, *weights))
    biases = [torch.zeros(len(w), device=DEVICE, dtype=dtype) for w in weights]
    outcomes = []
    for module in (functional, reference):
        leaves = [x.clone().requires_grad_(), biases[0].clone().requires_grad_()]
        y = module.mlp(leaves[0], weights, [leaves[1], biases[1]])
        outcomes.append(torch.autograd.grad(y, leaves, dy))
    (dx, db), (torch_dx, torch_db) = outcomes
    assert torch.equal(dx[5].isfinite(), torch_dx[5].isfinite())
    assert torch.equal(db.isfinite(), torch_db.isfinite()) and db.isfinite().any()


@cuda_only
def test_in_a_cuda_graph():
    x, w, b = (t.to(DEVICE) for t in linear_tensors((64, 64, 64), torch.bfloat16))
    expected = functional.linear_relu(x, w, b)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = functional.linear_relu(x, w, b)
    y.zero_()
    graph.replay()
    assert torch.equal(y, expected)
