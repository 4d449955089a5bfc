"""The CPU as the device of benchmarks/gpu: the same methods as device.py's Cuda. A recorded graph
is a function that does the work again, and nothing is compiled. Beside it tiny cases to run."""

import time
from types import SimpleNamespace

import torch
from made_up_figures import ROOT  # noqa: F401  (puts the checkout on sys.path)

from benchmarks.gpu import ops
from benchmarks.gpu.budget import Budget
from benchmarks.gpu.cases import run
from benchmarks.harness import Effort


class Cpu:
    torch = torch.device("cpu")
    records_graphs = False  # so Adam is not made capturable, which torch allows on a GPU only
    properties = SimpleNamespace(
        name="A GPU", major=9, minor=0, multi_processor_count=1, total_memory=1 << 30,
        L2_cache_size=1 << 10,
    )  # fmt: skip

    def __init__(self):
        self.recorded, self.compiled_with, self.released = 0, [], 0

    def synchronize(self):
        pass

    def sets(self, bytes_each):
        return 2

    def record(self, work):
        work()
        self.recorded += 1
        return work

    def gpu_seconds(self, call, calls):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return time.perf_counter() - start

    wall_seconds = gpu_seconds

    def compiled(self, function, **options):
        self.compiled_with.append(options)
        return function

    def release(self):
        self.released += 1


TINY = Effort(rounds=1, sample_s=1e-6, budget_s=0.01)
AMPLE = 1e6
SHAPE = (5, 6, 7)


def timed(cases, budget=None):
    cpu = Cpu()
    return cpu, run(cpu, cases(cpu), TINY, budget or Budget(AMPLE))


def faulty(scale=1.0, noise=0.0):
    def function(x, w, b):
        y = torch.nn.functional.linear(x, w, b) * scale
        return y + noise * torch.rand_like(y)

    tensors = tuple(torch.randn(s) for s in ((4, 3), (5, 3), (5,)))
    return ops.Op("linear", function, torch.nn.functional.linear, tensors)
