"""What the GPU can do at best, and the first questions to it: what the design was decided on
without one. An answer that differs changes which kernels are worth writing."""

from collections.abc import Iterator
from functools import partial

import torch

from mlp_ext import functional

from ..harness import OURS, Case, Competitor
from . import mma
from .settings import PRECISIONS, settings, under
from .timing import Timed, recorded
from .worker import Item

COPY_BYTES = 1 << 30  # twenty times the L2 of an H200
SIZES = (4096, 1024, 2048, 512)
KINDS = {"SGEMM": "float32", "TF32": "tf32", "bf16": "bfloat16", "fp16": "float16"}


def figure(case: str, measure: str, value: float) -> dict:
    return {"kind": "figure", "case": case, "measure": measure, "value": value}


def copy(device) -> Timed:
    """Reads and writes together."""
    size = 4096 if device.tiny else COPY_BYTES

    def make():
        source = torch.ones(size // 4, device=device.torch)
        return partial(torch.empty_like(source).copy_, source)

    return Timed(Case("rates", "copy", {"torch": Competitor(make, OURS)}, bytes=2.0 * size))


def product(device, kind: str, size: int) -> Timed:
    dtype, precision = PRECISIONS[KINDS[kind]]
    sets = device.sets(2 * size * size * dtype.itemsize)

    def make(i: int):
        a, b, out = (torch.randn(size, size, device=device.torch).to(dtype) for _ in range(3))
        return under(precision, lambda: torch.mm(a, b, out=out))

    torchs = {"torch": Competitor(recorded(device, make, sets), OURS)}
    return Timed(Case("rates", f"cuBLAS {kind} {size}", torchs, flops=2.0 * size**3), sets)


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


def tensor_cores(device) -> Iterator[dict]:
    yield figure("mma.sync TF32", "TFLOP/s", mma.tf32_rate(device))
    yield figure("mma.sync truncates", "% of bits as modelled", mma.share_as_modelled(device))


def items(device) -> Iterator[Item]:
    yield copy(device).item()
    for size in (8,) if device.tiny else SIZES:
        yield from (product(device, kind, size).item() for kind in KINDS)
    for ask in (float32_error, library_relu, *([] if device.tiny else [tensor_cores])):
        yield Item(ask.__name__, ask)
