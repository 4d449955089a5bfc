"""Large products on one thread, as per cent of what the multipliers of that core can do."""

from collections.abc import Iterator

import torch.nn.functional as F

import mlp_ext

from .calls import forward, randn
from .harness import Case, against

SHAPES = {
    False: ((1024, 1024, 1024), (512, 512, 512), (256, 1024, 1024), (64, 512, 784)),
    True: ((2048, 2048, 2048), (256, 256, 256), (512, 512, 784), (1024, 256, 64)),
}


def cases(full: bool) -> Iterator[Case]:
    for m, n, k in SHAPES[False] + (SHAPES[True] if full else ()):
        inputs = randn((m, k), (n, k))
        yield Case(
            "gemm",
            f"M={m} N={n} K={k}",
            against(*(forward(f, *inputs) for f in (F.linear, mlp_ext.functional.linear))),
            flops=2.0 * m * n * k,
            bytes=4.0 * (m * k + n * k + m * n),
            ceiling="fma_1",
            threads=1,
        )
