"""Which instruction set (ISA) the CPU kernels run on, and the memory that they keep.

The best one that this CPU has is taken when the extension is loaded, unless the environment
variable MLP_EXT_CPU_ISA names another. An ISA changes the last bits of a result and its speed,
nothing else.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from . import _load

__all__ = ["active_isa", "compiled_isas", "release_memory", "supported_isas", "use_isa"]

_C = _load._C


def active_isa() -> str:
    """Name of the ISA that every CPU kernel of this process runs on at present."""
    return _C.cpu_active_isa()


def compiled_isas() -> list[str]:
    """Names of the ISAs that were built in, whether this CPU has them or not."""
    return _C.cpu_compiled_isas()


def supported_isas() -> list[str]:
    """Names of the ISAs that were built in and that this CPU runs, the most preferred one last."""
    return _C.cpu_supported_isas()


def release_memory() -> int:
    """Give the system back the memory of tensors that are gone.

    Activations and gradients of 64 KiB and more are kept for the next step, 256 MiB at most: to get
    them from the system anew at each step takes longer than the arithmetic of some layers.

    Returns:
        The number of bytes given back.
    """
    return _C.release_memory()


@contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Run the body of a `with` on the ISA `name`; the previous one is back afterwards, always.

    For tests and benchmarks: the switch is of the whole process, so calls in other threads change
    over too.

    Args:
        name: one of `supported_isas()`.

    Raises:
        ValueError: for an ISA that is unknown, not built in, or not supported by this CPU, naming
            what is; the active one then stays.
    """
    previous = _C.cpu_active_isa()
    _C.cpu_set_isa(name)
    try:
        yield
    finally:
        _C.cpu_set_isa(previous)
