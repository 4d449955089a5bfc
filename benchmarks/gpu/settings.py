"""In what arithmetic products run, and by which of our kernels."""

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch

from mlp_ext import _load

# Name -> (dtype, torch.set_float32_matmul_precision).
PRECISIONS: dict[str, tuple[torch.dtype, str]] = {
    "float32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
    "bfloat16": (torch.bfloat16, "highest"),
    "float16": (torch.float16, "highest"),
}
# Of csrc/cuda/gemm/heuristics.h.
TILES = ("128x128", "64x64", "128x32", "32x128")


@contextlib.contextmanager
def settings(precision: str = "highest", force: str = "") -> Iterator[None]:
    """torch's precision of float32 products, and what MLP_EXT_FORCE could be ("": the heuristics
    decide)."""
    before = torch.get_float32_matmul_precision(), _load._C.force_products(force)
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        _load._C.force_products(before[1])


def under(precision: str, function: Callable, force: str = "") -> Callable:
    """The function, called with these settings."""

    @functools.wraps(function)
    def call(*arguments):
        with settings(precision, force):
            return function(*arguments)

    return call
