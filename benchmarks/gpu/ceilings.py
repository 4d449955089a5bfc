"""What the GPU can do at best, as PyTorch gets it: copying memory, and cuBLAS's products."""

import torch

from ..harness import OURS, Case, Competitor, Effort, measure
from .budget import Budget
from .figures import Figure
from .precision import under

COPY_BYTES = 1 << 30  # twenty times the L2 of an H100
SIZES = (512, 1024, 2048, 4096)
KINDS = {
    "SGEMM": (torch.float32, "highest"),
    "TF32": (torch.float32, "high"),
    "bf16": (torch.bfloat16, "highest"),
    "fp16": (torch.float16, "highest"),
}


def _seconds(device, name: str, make, effort: Effort) -> tuple[float | None, str]:
    result = measure(
        Case("ceilings", name, {"torch": Competitor(make, OURS)}), effort, device.gpu_seconds
    )
    device.release()
    timing = result.timings.get("torch")
    return (timing.median if timing else None), result.notes.get("torch", "")


def copy_bandwidth(device, effort: Effort, size: int = COPY_BYTES) -> Figure:
    """Reads and writes together."""

    def make():
        source = torch.ones(size // 4, device=device.torch)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    seconds, note = _seconds(device, "copy", make, effort)
    return Figure("copy", "GB/s", 2 * size / seconds / 1e9 if seconds else None, note)


def product(device, kind: str, size: int, effort: Effort) -> Figure:
    dtype, precision = KINDS[kind]

    def make():
        copies = device.sets(2 * size * size * dtype.itemsize)
        pairs = [
            tuple(torch.randn(size, size, device=device.torch).to(dtype) for _ in range(2))
            for _ in range(copies)
        ]
        out = torch.empty(size, size, device=device.torch, dtype=dtype)

        def work():
            for a, b in pairs:
                torch.mm(a, b, out=out)

        make.copies = copies
        return device.record(under(precision, work))

    seconds, note = _seconds(device, f"{kind} {size}", make, effort)
    rate = 2.0 * size**3 * make.copies / seconds / 1e12 if seconds else None
    return Figure(f"cuBLAS {kind} {size}", "TFLOP/s", rate, note)


def measured(
    device, effort: Effort, budget: Budget, sizes: tuple[int, ...] = SIZES
) -> list[Figure]:
    figures = [copy_bandwidth(device, effort)]
    for kind in KINDS:
        for size in sizes:
            if budget.has_time_for(f"cuBLAS {kind} {size}"):
                figures.append(product(device, kind, size, effort))
    return figures


def value_of(figures: list[Figure], case: str) -> float | None:
    return next((figure.value for figure in figures if figure.case == case), None)
