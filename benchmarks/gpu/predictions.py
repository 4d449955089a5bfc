"""What was expected of a GPU before one was at hand, to be shown beside each figure.

A figure is named by its case and its measure, here as in table.py. `goal`: what the kernels are
for; missing it is a defect. `estimate`: arithmetic, simulation, or another program's measurement on
an H100; missing it means that the understanding was wrong, either way.
"""

from collections.abc import Iterator
from dataclasses import dataclass

GOAL, ESTIMATE = "goal", "estimate"


@dataclass(frozen=True)
class Prediction:
    """low <= value <= high, either of which may be missing. why: how, and on which GPU."""

    case: str
    measure: str
    low: float | None
    high: float | None
    source: str = ESTIMATE
    why: str = "H100"

    @property
    def in_words(self) -> str:
        if self.high is None:
            return f">= {self.low:g}"
        if self.low is None:
            return f"<= {self.high:g}"
        return f"{self.low:g} to {self.high:g}" if self.low < self.high else f"{self.low:g}"

    def verdict(self, value: float) -> str:
        """In a word; an estimate of one number is met within a tenth."""
        slack = 0.1 if self.low == self.high and self.source == ESTIMATE else 0.0
        if self.low is not None and value < self.low * (1 - slack):
            return "MISSED" if self.source == GOAL else "lower"
        if self.high is not None and value > self.high * (1 + slack):
            return "MISSED" if self.source == GOAL else "higher"
        return "met" if self.source == GOAL else "as estimated"


def _goals() -> Iterator[Prediction]:
    def at_least(case: str, measure: str, low: float) -> Prediction:
        return Prediction(case, measure, low, None, GOAL, "")

    yield Prediction("float32 error", "x cuBLAS SGEMM's", None, 2, GOAL, "")
    for how in ("wall", "graph"):
        yield at_least(f"Adam 1 M, {how}", "x torch fused", 2)
    for size in (16, 100):
        yield at_least(f"Adam {size} M, graph", "% of copy", 90)
    for net in ("64-64-64-4 / 256", "17-256-256-6 / 256", "784-512-256-10 / 512"):
        yield at_least(f"step {net}", "x torch fused Adam", 3)
        yield at_least(f"step {net}", "x torch.compile", 1.5)
    yield at_least("step 1024-1024-1024-1024 / 4096", "x torch fused Adam", 1.2)


def _of_others() -> Iterator[Prediction]:
    """Measured by others on an H100 SXM."""
    known = {"SGEMM": ((48, 55), (48, 55)), "TF32": (333, 404), "fp16": (555, 733)}
    for kind, rates in known.items():
        for size, rate in zip((2048, 4096), rates, strict=True):
            low, high = rate if isinstance(rate, tuple) else (rate, rate)
            yield Prediction(f"cuBLAS {kind} {size}", "TFLOP/s", low, high)


def _estimates() -> Iterator[Prediction]:
    case = "linear_relu float32 4096x4096x4096 forward"
    yield Prediction(case, "TFLOP/s", 60, 70, why="H100, 3xTF32 by mma.sync")
    yield Prediction(case, "x torch", 1.1, 1.4, why="H100, 3xTF32 by mma.sync")
    for dtype in ("bfloat16", "float16"):
        case = f"linear_relu {dtype} 4096x4096x4096 forward"
        yield Prediction(case, "x torch", 1.0, 1.06, why="H100, wgmma")
    for width in (64, 128):
        case = f"mlp {width} x 4 layers / 65536"
        yield Prediction(f"{case} forward", "x torch", 5, 6)
        yield Prediction(f"{case} forward+backward", "x torch", 4, 4)
    for case in ("cross_entropy 65536 x 1000", "bce_with_logits 65536 x 1000"):
        yield Prediction(case, "x torch", 3, 4)
        yield Prediction(case, "% of copy", 85, None)
    yield Prediction("Adam 1 M, graph", "x torch fused", 2, 3)
    yield Prediction("mma.sync TF32", "% of cuBLAS TF32", 62, 62, why="H100, of wgmma's rate")
    yield Prediction("mma.sync truncates", "% of bits as modelled", 100, 100, why="")
    yield Prediction("cuBLASLt's DRELU", "% of closed gates that give 0", 100, 100, why="")
    yield Prediction("cuBLASLt's ReLU", "% of NaN kept", 0, 0, why="max(x, 0)")


PREDICTIONS = (*_goals(), *_of_others(), *_estimates())
