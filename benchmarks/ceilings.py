"""The machine's limits, measured in the run that is compared with them.

`measured()` returns, by the names that `Case.ceiling` uses: "fma_1" and "fma", the float32
multiply-add rate of one thread and of all (GFLOP/s); "read", reading memory (GB/s); "stream", the
traffic of an Adam step without its arithmetic (GB/s).
"""

import ctypes
import hashlib

import torch

from . import held, machine
from .compiler import BUILD, ROOT, compile_to, find_compiler

UNITS = {"fma_1": "GFLOP/s", "fma": "GFLOP/s", "read": "GB/s", "stream": "GB/s"}

SOURCE = ROOT / "benchmarks" / "ceilings.cpp"
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread")

READ_BYTES = 256 << 20  # eight times the last-level cache of the machines that this ran on
STREAM_ELEMENTS = 16 << 20  # four arrays of 64 MiB


def library() -> ctypes.CDLL:
    """ceilings.cpp, compiled for this CPU unless that has been done; NoCompiler if it cannot be."""
    flags = (*FLAGS, f"-march={held.march()}")
    made_from = (SOURCE.read_text(), flags, find_compiler(), machine.cpu_model())
    key = hashlib.sha256(repr(made_from).encode()).hexdigest()[:12]
    path = BUILD / f"ceilings-{key}.so"
    loaded = ctypes.CDLL(str(path if path.exists() else compile_to(path, *flags, SOURCE)))
    for function in (loaded.fma_gflops, loaded.read_gbs, loaded.stream_gbs):
        function.restype = ctypes.c_double
    return loaded


def measured(samples: int = 15) -> dict[str, float]:
    """The limits, with torch's number of threads. Takes one to two seconds."""
    loaded, threads = library(), torch.get_num_threads()
    return {
        "fma_1": loaded.fma_gflops(1, samples),
        "fma": loaded.fma_gflops(threads, samples),
        "read": loaded.read_gbs(threads, samples, ctypes.c_int64(READ_BYTES)),
        "stream": loaded.stream_gbs(threads, samples, ctypes.c_int64(STREAM_ELEMENTS)),
    }
