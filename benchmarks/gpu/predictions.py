"""What was expected of a GPU before one was at hand, to be shown beside each figure.

A figure is named by its case and its measure, here as in figures.py. `goal`: what the kernels are
for; missing it is a defect. `estimate`: arithmetic, simulation, or another program's measurement on
the GPU that `gpu` names; missing it means that the understanding was wrong, either way.
"""

from dataclasses import dataclass

GOAL, ESTIMATE = "goal", "estimate"
H100 = "H100"


@dataclass(frozen=True)
class Prediction:
    """low <= value <= high, either of which may be missing; `gpu` is part of the GPU's name."""

    case: str
    measure: str
    low: float | None
    high: float | None
    source: str
    gpu: str = ""
    why: str = ""

    def __post_init__(self) -> None:
        if self.source not in (GOAL, ESTIMATE) or (self.low is None and self.high is None):
            raise ValueError(f"no prediction: {self}")

    @property
    def in_words(self) -> str:
        if self.high is None:
            return f">= {self.low:g}"
        if self.low is None:
            return f"<= {self.high:g}"
        return f"{self.low:g} to {self.high:g}" if self.low < self.high else f"{self.low:g}"

    def verdict(self, value: float, gpu: str) -> str:
        """In a word; an estimate of one number is met within a tenth."""
        if self.gpu not in gpu:
            return f"for {self.gpu}"
        slack = 0.1 if self.low == self.high and self.source == ESTIMATE else 0.0
        if self.low is not None and value < self.low * (1 - slack):
            return "MISSED" if self.source == GOAL else "lower"
        if self.high is not None and value > self.high * (1 + slack):
            return "MISSED" if self.source == GOAL else "higher"
        return "met" if self.source == GOAL else "as estimated"


def _of_ceilings() -> list[Prediction]:
    """Measured by others on an H100 SXM."""
    known = {
        ("SGEMM", 2048): (48, 55), ("SGEMM", 4096): (48, 55),
        ("TF32", 2048): (333, 333), ("TF32", 4096): (404, 404),
        ("fp16", 2048): (555, 555), ("fp16", 4096): (733, 733),
    }  # fmt: skip
    return [
        Prediction(f"cuBLAS {kind} {size}", "TFLOP/s", low, high, ESTIMATE, H100)
        for (kind, size), (low, high) in known.items()
    ]


def _of_products() -> list[Prediction]:
    case = "linear_relu float32 highest 4096x4096x4096 forward"
    mma, wgmma = "3xTF32 by mma.sync", "3xTF32 by wgmma (sm_90a)"
    predictions = [
        Prediction("float32 error", "x cuBLAS SGEMM's", None, 2, GOAL),
        Prediction(case, "TFLOP/s", 60, 70, ESTIMATE, H100, mma),
        Prediction(case, "TFLOP/s", 90, 110, ESTIMATE, H100, wgmma),
        Prediction(case, "x torch", 1.1, 1.4, ESTIMATE, H100, mma),
        Prediction(case, "x torch", 1.8, 2.1, ESTIMATE, H100, wgmma),
    ]
    for dtype in ("bfloat16", "float16"):
        case = f"linear_relu {dtype} 4096x4096x4096 forward"
        predictions.append(Prediction(case, "x torch", 1.0, 1.06, ESTIMATE, H100, "wgmma"))
    for width in (64, 128):
        case = f"mlp {width} x 4 layers / 65536"
        predictions.append(Prediction(f"{case} forward", "x torch", 5, 6, ESTIMATE, H100))
        predictions.append(Prediction(f"{case} forward+backward", "x torch", 4, 4, ESTIMATE, H100))
    return predictions


def _of_losses() -> list[Prediction]:
    predictions = []
    for case in ("cross_entropy 65536 x 1000", "bce_with_logits 65536 x 1000"):
        predictions.append(Prediction(case, "x torch", 3, 4, ESTIMATE, H100))
        predictions.append(Prediction(case, "% of copy", 85, None, ESTIMATE, H100))
    return predictions


def _of_adam() -> list[Prediction]:
    predictions = [
        Prediction(f"Adam {size} M, {how}", "x torch fused", 2, None, GOAL)
        for size in (1,)
        for how in ("wall", "graph")
    ]
    predictions.append(Prediction("Adam 1 M, graph", "x torch fused", 2, 3, ESTIMATE, H100))
    for size in (16, 100):
        predictions.append(Prediction(f"Adam {size} M, graph", "% of copy", 90, None, GOAL))
    return predictions


def _of_steps() -> list[Prediction]:
    predictions = []
    for net in ("64-64-64-4 / 256", "17-256-256-6 / 256", "784-512-256-10 / 512"):
        case = f"step {net}"
        predictions.append(Prediction(case, "x torch fused Adam", 3, None, GOAL))
        predictions.append(Prediction(case, "x torch.compile", 1.5, None, GOAL))
    case = "step 1024-1024-1024-1024 / 4096"
    return [*predictions, Prediction(case, "x torch fused Adam", 1.2, None, GOAL)]


def _of_questions() -> list[Prediction]:
    return [
        Prediction("mma.sync TF32", "% of cuBLAS TF32", 62, 62, ESTIMATE, H100, "of wgmma's rate"),
        Prediction("mma.sync truncates", "% of bits as modelled", 100, 100, ESTIMATE),
        Prediction("cuBLASLt's DRELU", "% of closed gates that give 0", 100, 100, ESTIMATE),
        Prediction("cuBLASLt's ReLU", "% of NaN kept", 0, 0, ESTIMATE, why="max(x, 0)"),
    ]


PREDICTIONS: tuple[Prediction, ...] = (
    *_of_ceilings(),
    *_of_products(),
    *_of_losses(),
    *_of_adam(),
    *_of_steps(),
    *_of_questions(),
)
