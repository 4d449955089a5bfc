"""The only code here that knows CUDA's clocks, graphs and caches, and the CPU in its place.

Two ways to time, each a clock for `harness.measure`. `gpu_seconds` is by events around calls that
replay a recorded CUDA graph: what the GPU takes, without Python. `wall_seconds` is by the host's
clock, with one wait at the end: what a loop takes, launches included.

A recorded call works through several sets of inputs, which together outgrow the L2 cache, so that
none is read from there; small inputs would take thousands of sets, and have at most `MOST_SETS`.
"""

import math
import time
from collections.abc import Callable

import torch

import mlp_ext  # noqa: F401  (registers the ops that `missing` looks for)

from ..harness import Call, walled

MOST_SETS = 64
OUTGROWS = 3  # times L2


class Cuda:
    tiny = False

    def __init__(self) -> None:
        self.torch = torch.device("cuda", torch.cuda.current_device())
        self.properties = torch.cuda.get_device_properties(self.torch)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.torch)

    def is_lost(self) -> bool:
        """After an error of a kernel nothing works in this process any more."""
        try:
            self.synchronize()
        except Exception:
            return True
        return False

    def sets(self, bytes_each: float) -> int:
        """How many sets of inputs of this size to rotate; two at least."""
        wanted = math.ceil(OUTGROWS * self.properties.L2_cache_size / max(bytes_each, 1))
        return min(max(wanted, 2), MOST_SETS)

    def record(self, work: Callable[[], object]) -> Call:
        """`work` as a CUDA graph. It runs three times before that, which compiles what is compiled
        at first use and makes the workspaces of cuBLAS outside of the graph."""
        stream = torch.cuda.Stream(self.torch)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            kept = work()

        def replay() -> object:
            graph.replay()
            return kept  # the graph writes into them

        return replay

    def gpu_seconds(self, call: Call, calls: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def wall_seconds(self, call: Call, calls: int) -> float:
        self.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        self.synchronize()
        return time.perf_counter() - start

    def compiled(self, function: Callable, **options) -> Callable:
        """torch.compile, with nothing left of what was compiled before: recompilations of one
        function are limited, and every shape is one."""
        torch.compiler.reset()
        return torch.compile(function, dynamic=False, **options)

    def release(self) -> None:
        """Gives memory of graphs and inputs that are gone back."""
        torch.cuda.empty_cache()


class Cpu:
    """For `--dry-run`: tiny shapes; a recorded graph is the work again, and nothing is compiled."""

    tiny = True
    torch = torch.device("cpu")
    gpu_seconds = wall_seconds = staticmethod(walled)
    synchronize = release = is_lost = staticmethod(lambda: None)

    def sets(self, bytes_each: float) -> int:
        return 2

    def record(self, work: Callable[[], object]) -> Call:
        return work

    def compiled(self, function: Callable, **options) -> Callable:
        return function


def missing() -> str:
    """Why nothing can be run here; "" where it can."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no NVIDIA GPU (torch.cuda.is_available())"
    if not torch._C._dispatch_has_kernel_for_dispatch_key("mlp_ext::mlp", "CUDA"):
        return "this mlp_ext was built without CUDA kernels (`python -m mlp_ext` says why)"
    return ""
