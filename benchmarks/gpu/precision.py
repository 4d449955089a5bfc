"""In what arithmetic products run: a dtype, and for float32 torch's setting of its precision."""

import contextlib
from collections.abc import Callable, Iterator

import torch

# Name -> (dtype, torch.set_float32_matmul_precision).
PRECISIONS: dict[str, tuple[torch.dtype, str]] = {
    "float32 highest": (torch.float32, "highest"),
    "float32 high": (torch.float32, "high"),
    "bfloat16": (torch.bfloat16, "highest"),
    "float16": (torch.float16, "highest"),
}


@contextlib.contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def under(name: str, function: Callable) -> Callable:
    """The function, called with float32 products of this precision."""

    def call(*arguments):
        with matmul_precision(name):
            return function(*arguments)

    return call
