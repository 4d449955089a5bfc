"""The training loop in bfloat16 and float16, against PyTorch and against our own float32. The
per cent are of the float32 peak, also where bfloat16 products exceed it."""

from collections.abc import Iterator

import torch

from .bench_loop import stepper
from .harness import BASELINE, OURS, Case, Competitor
from .models import step_bytes, step_flops
from .peers import mlp_ext_trainer, torch_trainer


def cases(full: bool) -> Iterator[Case]:
    for name in ("mnist", "wide"):
        for dtype in (torch.bfloat16, torch.float16):
            if (name, dtype) == ("wide", torch.float16) and not full:
                continue  # 1.4 s a step on two cores of a Zen 4, ours and PyTorch's alike
            baseline = stepper(torch_trainer, name, dtype=dtype, fused=True)
            yield Case(
                "dtypes",
                f"{name} {str(dtype).removeprefix('torch.')}",
                {
                    "torch": Competitor(baseline, BASELINE),
                    "torch float32": Competitor(stepper(torch_trainer, name, fused=True)),
                    "mlp_ext float32": Competitor(stepper(mlp_ext_trainer, name)),
                    "mlp_ext": Competitor(stepper(mlp_ext_trainer, name, dtype=dtype), OURS),
                },
                flops=step_flops(name),
                bytes=step_bytes(name, size=2),
                ceiling="fma",
            )
