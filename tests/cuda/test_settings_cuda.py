"""What surrounds a call on CUDA: streams, the current device, precision settings, autocast,
torch.compile, gradcheck, opcheck."""

import contextlib
import itertools

import pytest
import torch
from cases import (
    activations,
    evaluate,
    linear_tensors,
    relative_error,
    stack_tensors,
)
from on_device import DEVICE, IS_CUDA, cuda, cuda_only, to_device
from test_opcheck import SAMPLES as OPCHECK_SAMPLES
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import mlp_ext
from mlp_ext import functional, reference

pytestmark = cuda


def stack(module, activation="gelu"):
    return lambda x, *p: module.mlp(x, p[::2], p[1::2], activation=activation)


def net_tensors(rows=65, sizes=(33, 64, 49, 16), dtype=torch.float32):
    x, parameters = stack_tensors(rows, sizes, dtype, activation="gelu")
    return to_device(x, *parameters)


# ---- streams and devices


@cuda_only
def test_runs_on_the_current_stream():
    """Behind slow work in the same stream, whose result it needs; the default stream is idle."""
    x, w, b = to_device(*linear_tensors((256, 256, 256), torch.float32))
    expected = functional.linear_relu(2 * x, w, b)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = x.clone()
        torch.cuda._sleep(50_000_000)  # cycles: some 30 ms
        late.mul_(2)
        y = functional.linear_relu(late, w, b)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(y, expected)


@cuda_only
def test_backward_runs_on_the_stream_of_the_forward():
    tensors = net_tensors()
    dy = torch.randn(65, 16, device=DEVICE)
    expected = evaluate(stack(functional), tensors, dy)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        leaves = [t.detach().requires_grad_() for t in tensors]
        y = stack(functional)(*leaves)
        torch.cuda._sleep(20_000_000)
    grads = torch.autograd.grad(y, leaves, dy)
    torch.cuda.current_stream().wait_stream(stream)
    for i, grad in enumerate(grads):
        assert torch.equal(grad, expected[f"grad{i}"])


@cuda_only
def test_many_streams_share_no_workspace():
    """A sum that is cut into parts has a workspace; streams in flight at once must not share it."""
    inputs = [to_device(*linear_tensors((64, 64, 8192), torch.float32)) for _ in range(4)]
    expected = [functional.linear(*tensors) for tensors in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    results = [[] for _ in inputs]
    for _ in range(20):
        for stream, tensors, found in zip(streams, inputs, results, strict=True):
            with torch.cuda.stream(stream):
                found.append(functional.linear(*tensors))
    torch.cuda.synchronize()
    for found, value in zip(results, expected, strict=True):
        assert all(torch.equal(y, value) for y in found)


@cuda_only
def test_runs_in_a_cuda_graph():
    tensors = net_tensors()
    dy = torch.randn(65, 16, device=DEVICE)
    leaves = [t.detach().clone().requires_grad_() for t in tensors]

    def work():
        y = stack(functional)(*leaves)
        return [y, *torch.autograd.grad(y, leaves, dy)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = work()
    with torch.no_grad():
        leaves[0].mul_(-0.5)
    graph.replay()
    for again, expected in zip(recorded, work(), strict=True):
        assert torch.equal(again, expected)


@cuda_only
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_runs_on_the_device_of_its_tensors():
    x, w, b = linear_tensors((33, 65, 17), torch.float32)
    expected = functional.linear_relu(*(t.to("cuda:0") for t in (x, w, b))).cpu()
    with torch.cuda.device(0):
        leaves = [t.to("cuda:1").requires_grad_() for t in (x, w, b)]
        y = functional.linear_relu(*leaves)
        grads = torch.autograd.grad(y.sum(), leaves)
        assert torch.cuda.current_device() == 0
    assert {t.device.index for t in (y, *grads)} == {1}
    assert torch.equal(y.cpu(), expected)


@cuda_only
def test_nothing_waits_for_the_gpu():
    tensors = net_tensors()
    y = torch.randint(16, (65,), device=DEVICE)
    leaves = [t.detach().requires_grad_() for t in tensors]
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = functional.cross_entropy(stack(functional)(*leaves), y)
        torch.autograd.grad(loss, leaves)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- float32 precision


@contextlib.contextmanager
def matmul_precision(name):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def rms_error(function, x, w):
    exact = x.double() @ w.double().t()
    return (function(x, w).double() - exact).square().mean().sqrt().item()


@pytest.mark.parametrize("shape", [(128, 128, 64), (256, 256, 1024), (64, 64, 4099)], ids=str)
def test_highest_precision_is_that_of_sgemm(shape):
    x, w, _ = to_device(*linear_tensors(shape, torch.float32))
    with matmul_precision("highest"):
        ours, theirs = (rms_error(m.linear, x, w) for m in (functional, torch.nn.functional))
    assert ours <= 2 * theirs


@cuda_only
def test_high_precision_is_tf32_and_no_less():
    """ "high" allows tf32, with 2^-11 an operand; so do torch's other switches for it."""
    x, w, _ = to_device(*linear_tensors((256, 256, 256), torch.float32))
    exact = functional.linear(x, w)
    with matmul_precision("high"):
        fast = functional.linear(x, w)
        error = relative_error(fast, x.double() @ w.double().t())
    assert error < 2**-9
    has_tf32 = torch.cuda.get_device_capability() >= (8, 0)
    assert torch.equal(fast, exact) != has_tf32
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        assert torch.equal(functional.linear(x, w), fast)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert torch.equal(functional.linear(x, w), exact)


def test_fp32_precision_set_by_itself():
    """Where torch's older switches raise when they are asked."""
    x, w, _ = to_device(*linear_tensors((256, 256, 256), torch.float32))
    exact = functional.linear(x, w)
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        fast = functional.linear(x, w)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert relative_error(fast, x.double() @ w.double().t()) < 2**-9
    assert not IS_CUDA or torch.equal(fast, exact) != (torch.cuda.get_device_capability() >= (8, 0))
    assert torch.equal(functional.linear(x, w), exact)


# ---- autocast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_autocast(dtype):
    tensors = net_tensors()
    dy = torch.randn(65, 16).to(DEVICE, dtype)

    def under_autocast(module):
        def run(*leaves):
            with torch.autocast(DEVICE, dtype):
                return stack(module)(*leaves)

        return run

    ours, theirs = (evaluate(under_autocast(m), tensors, dy) for m in (functional, reference))
    assert ours["output"].dtype == dtype
    for name, expected in theirs.items():
        assert ours[name].dtype == expected.dtype, name
        assert relative_error(ours[name], expected) < 8 * torch.finfo(dtype).eps, name


def test_autocast_losses_are_float32():
    logits = torch.randn(9, 5, device=DEVICE).to(torch.bfloat16)
    labels = (torch.arange(9) % 5).to(DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert functional.cross_entropy(logits, labels).dtype == torch.float32
        assert functional.mse_loss(logits, logits * 2).dtype == torch.float32


# ---- torch.compile, gradients of gradients, opcheck


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_without_a_graph_break(backend, fresh_compiler):
    if backend == "inductor" and not IS_CUDA:
        pytest.skip("inductor on the CPU is tested in test_compiled_training.py")
    model = mlp_ext.nn.Linear(33, 17, activation="silu").to(DEVICE)
    head = nn.Linear(17, 5).to(DEVICE)

    def loss_of(x, y):
        logits = functional.linear(model(x), head.weight, head.bias)
        return functional.cross_entropy(logits, y)

    compiled = torch.compile(loss_of, fullgraph=True, backend=backend)
    parameters = [*model.parameters(), *head.parameters()]
    for rows in (4, 9, 9):
        x, y = torch.randn(rows, 33).to(DEVICE), (torch.arange(rows) % 5).to(DEVICE)
        expected = torch.autograd.grad(loss_of(x, y), parameters)
        torch.testing.assert_close(compiled(x, y), loss_of(x, y))
        torch.testing.assert_close(torch.autograd.grad(compiled(x, y), parameters), expected)


@activations()
def test_gradcheck(activation):
    leaves = [t.requires_grad_() for t in to_device(*linear_tensors((3, 5, 4), torch.float64))]

    def ours(x, w, b):
        return functional.linear(x, w, b, activation=activation)

    assert gradcheck(ours, leaves)
    assert gradgradcheck(ours, leaves)


def test_gradcheck_of_a_stack():
    x, parameters = stack_tensors(3, (4, 5, 3), torch.float64, activation="tanh")
    leaves = [t.requires_grad_() for t in to_device(x, *parameters)]
    assert gradcheck(stack(functional, "tanh"), leaves)


def moved(value):
    """Tensors on the device, as leaves that require a gradient if they did."""
    if isinstance(value, (list, tuple)):
        return type(value)(moved(v) for v in value)
    if not torch.is_tensor(value):
        return value
    return value.detach().to(DEVICE).requires_grad_(value.requires_grad)


@pytest.mark.parametrize("op", OPCHECK_SAMPLES)
def test_opcheck(op):
    """Every fourth sample; all of them are checked on the CPU."""
    for sample in itertools.islice(OPCHECK_SAMPLES[op](), 0, None, 4):
        torch.library.opcheck(getattr(torch.ops.mlp_ext, op).default, moved(sample))
