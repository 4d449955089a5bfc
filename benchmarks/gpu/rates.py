"""What the GPU can do at best, and the first questions to it: what the design was decided on
without one. An answer that differs changes which kernels are worth writing."""

from collections.abc import Iterator
from functools import partial

import torch

from mlp_ext import functional

from ..harness import OURS, Case, Competitor, measure
from . import mma
from .settings import PRECISIONS, settings, under
from .timing import EFFORT, TINY
from .worker import Item

COPY_BYTES = 1 << 30  # twenty times the L2 of an H200
SIZES = (4096, 1024, 2048, 512)
KINDS = {"SGEMM": "float32", "TF32": "tf32", "bf16": "bfloat16", "fp16": "float16"}


def figure(case: str, measure: str, value: float) -> dict:
    return {"kind": "figure", "case": case, "measure": measure, "value": value}


def _seconds(device, name: str, make) -> float:
    effort = TINY if device.tiny else EFFORT
    case = Case("ceilings", name, {"torch": Competitor(make, OURS)})
    result = measure(case, effort, device.gpu_seconds)
    device.release()
    if "torch" not in result.timings:
        raise RuntimeError(result.notes["torch"])
    return result.timings["torch"].median


def copy(device) -> Iterator[dict]:
    """Reads and writes together."""
    size = 4096 if device.tiny else COPY_BYTES

    def make():
        source = torch.ones(size // 4, device=device.torch)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    yield figure("copy", "GB/s", 2 * size / _seconds(device, "copy", make) / 1e9)


def product(kind: str, size: int, device) -> Iterator[dict]:
    dtype, precision = PRECISIONS[KINDS[kind]]
    copies = device.sets(2 * size * size * dtype.itemsize)

    def make():
        pairs = [
            tuple(torch.randn(size, size, device=device.torch).to(dtype) for _ in range(2))
            for _ in range(copies)
        ]
        out = torch.empty(size, size, device=device.torch, dtype=dtype)

        def work():
            for a, b in pairs:
                torch.mm(a, b, out=out)

        return device.record(under(precision, work))

    seconds = _seconds(device, f"{kind} {size}", make) / copies
    yield figure(f"cuBLAS {kind} {size}", "TFLOP/s", 2.0 * size**3 / seconds / 1e12)


def mma_rate(device) -> Iterator[dict]:
    yield figure("mma.sync TF32", "TFLOP/s", mma.tf32_rate(device))


def mma_sums(device) -> Iterator[dict]:
    share = mma.share_as_modelled(device)
    yield figure("mma.sync truncates", "% of bits as modelled", share)


def float32_error(device, shape=(512, 512, 4096)) -> Iterator[dict]:
    """Root mean square error of our float32 product over cuBLAS SGEMM's."""
    m, n, k = (7, 5, 9) if device.tiny else shape
    generator = torch.Generator().manual_seed(m + n + k)
    x, w = (torch.randn(*s, generator=generator) for s in ((m, k), (n, k)))
    exact = x.double() @ w.double().t()
    on_device = [t.to(device.torch) for t in (x, w)]
    with settings():
        pair = (f(*on_device) for f in (functional.linear, torch.nn.functional.linear))
        ours, theirs = ((y.cpu().double() - exact).square().mean().sqrt().item() for y in pair)
    yield figure("float32 error", "x cuBLAS SGEMM's", ours / theirs if theirs else 1.0)


def library_relu(device) -> Iterator[dict]:
    """Of NaN that cuBLASLt's bias-and-ReLU epilogue is given, what comes out as NaN: its
    documentation says max(x, 0); at 100 % the library's ReLU could take the place of our pass
    behind its bias (csrc/cuda/cublaslt/lt_gemm.h). And of the gradients that ReLU stops, what is 0
    though NaN came back to it: 100 % where DRELU selects, as PyTorch does, and less where it
    multiplies. Each in the type where it is least."""
    kept, stopped = [], []
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        nan = torch.full((256, 256), torch.nan, device=device.torch, dtype=dtype)
        weight, bias = torch.ones_like(nan), torch.zeros_like(nan[0])
        y = torch._addmm_activation(bias, nan, weight.t(), use_gelu=False)
        kept.append(100 * y.isnan().double().mean().item())
        x = torch.full_like(nan, -1).requires_grad_()
        with settings("high", "library"):
            y = functional.mlp(x, [torch.eye(256, device=x.device, dtype=dtype)] * 2, [None] * 2)
            (dx,) = torch.autograd.grad(y, x, nan)
        stopped.append(100 * (dx == 0).double().mean().item())
    yield figure("cuBLASLt's ReLU", "% of NaN kept", min(kept))
    yield figure("cuBLASLt's DRELU", "% of closed gates that give 0", min(stopped))


def items(device) -> Iterator[Item]:
    yield Item("copy", copy)
    for size in (8,) if device.tiny else SIZES:
        yield from (Item(f"cuBLAS {kind} {size}", partial(product, kind, size)) for kind in KINDS)
    for ask in (float32_error, library_relu):
        yield Item(ask.__name__, ask)
    for ask in () if device.tiny else (mma_rate, mma_sums):
        yield Item(ask.__name__, ask)
