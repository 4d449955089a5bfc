"""The first questions to a GPU: what the design was decided on without one. An answer that differs
changes which kernels are worth writing. (The rates of SGEMM, TF32 and fp16 are in ceilings.py,
Adam's in adam.py.)"""

from collections.abc import Callable, Iterable

import torch

import mlp_ext

from . import cublaslt, mma
from .ceilings import value_of
from .figures import Figure
from .routes import forced


def _asked(case: str, measure: str, answer: Callable[[], float]) -> Figure:
    try:
        return Figure(case, measure, answer())
    except Exception as error:  # whatever is missing for one question, the others are asked
        reason = str(error).strip().partition("\n")[0]
        return Figure(case, measure, None, f"{type(error).__name__}: {reason}")


def epilogues() -> dict[str, list[str]] | str:
    """Arithmetic -> the epilogues that cuBLASLt has for it, or why that is not known."""
    try:
        return cublaslt.offered()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def share_of_nan_kept(device) -> float:
    """Of NaN that cuBLASLt's bias-and-ReLU epilogue is given, what comes out as NaN, in percent, of
    the type where that is least. Its documentation says max(x, 0); if it is 100, the library's ReLU
    could take the place of our pass behind its bias (csrc/cuda/cublaslt/lt_gemm.h)."""
    shares = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = torch.full((256, 256), torch.nan, device=device.torch, dtype=dtype)
        weight, bias = torch.ones_like(x), torch.zeros_like(x[0])
        y = torch._addmm_activation(bias, x, weight.t(), use_gelu=False)
        shares.append(100 * y.isnan().double().mean().item())
    return min(shares)


def share_of_closed_gates(device) -> float:
    """Of the gradients that ReLU stops, what is 0 though NaN or Inf came back to it, in percent:
    100 where cuBLASLt's DRELU selects, as PyTorch does, and less where it multiplies by 0 or 1."""
    shares = []
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        x = torch.full((256, 256), -1.0, device=device.torch, dtype=dtype, requires_grad=True)
        weights = [torch.eye(256, device=device.torch, dtype=dtype) for _ in range(2)]
        for special in (torch.nan, torch.inf):
            with forced("library"):
                y = mlp_ext.functional.mlp(x, weights, [None, None])
                (dx,) = torch.autograd.grad(y, x, torch.full_like(y, special))
            shares.append(100 * (dx == 0).double().mean().item())
    return min(shares)


def rates(device, ceilings: Iterable[Figure]) -> list[Figure]:
    figures = [
        _asked("mma.sync TF32", "TFLOP/s", lambda: mma.tf32_rate(device)),
        _asked(
            "mma.sync truncates", "% of bits as modelled", lambda: mma.share_as_modelled(device)
        ),
    ]
    figures.append(_asked("cuBLASLt's ReLU", "% of NaN kept", lambda: share_of_nan_kept(device)))
    figures.append(
        _asked(
            "cuBLASLt's DRELU",
            "% of closed gates that give 0",
            lambda: share_of_closed_gates(device),
        )
    )
    rate, best = figures[0].value, value_of(list(ceilings), "cuBLAS TF32 4096")
    if rate and best:
        figures.append(Figure("mma.sync TF32", "% of cuBLAS TF32", 100 * rate / best))
    return figures
