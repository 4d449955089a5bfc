"""The first questions to a GPU: what the design was decided on without one. An answer that differs
changes which kernels are worth writing. (The rates of SGEMM, TF32 and fp16 are in ceilings.py,
Adam's in adam.py.)"""

from collections.abc import Callable, Iterable

from . import cublaslt, mma
from .ceilings import value_of
from .figures import Figure


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


def rates(device, ceilings: Iterable[Figure]) -> list[Figure]:
    figures = [
        _asked("mma.sync TF32", "TFLOP/s", lambda: mma.tf32_rate(device)),
        _asked(
            "mma.sync truncates", "% of bits as modelled", lambda: mma.share_as_modelled(device)
        ),
    ]
    rate, best = figures[0].value, value_of(list(ceilings), "cuBLAS TF32 4096")
    if rate and best:
        figures.append(Figure("mma.sync TF32", "% of cuBLAS TF32", 100 * rate / best))
    return figures
