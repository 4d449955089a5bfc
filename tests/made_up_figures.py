"""What the tests of the benchmarks share: made-up figures."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # `pytest` alone, unlike `python -m pytest`, has no checkout on it

from benchmarks import harness  # noqa: E402
from benchmarks.harness import BASELINE, OURS, Case, Competitor  # noqa: E402

CEILINGS = {"fma_1": 100.0, "fma": 200.0, "read": 30.0, "stream": 40.0}
MACHINE = {
    **{"date": "2026-01-02", "commit": "abc1234", "cpu": "A CPU", "isa": "scalar"},
    **{"peer_threads": "torch 2", "torch": "2.13.0"},
}


def working(log=None, name=""):
    return lambda: lambda: None if log is None else log.append(name)


def broken():
    raise RuntimeError("out of luck\nand a long trace")


def fake_result(suite="loop", case="small (2-2, 4)", times=None, notes=None, **options):
    """A result with these medians in seconds: name -> time, of the baseline, ours, then peers."""
    times = times or {"torch fused Adam": 4e-3, "mlp_ext": 2e-3, "fast": 1e-3}
    roles = [BASELINE, OURS, "peer", "peer"]
    competitors = {n: Competitor(working(), r) for n, r in zip(times, roles, strict=False)}
    competitors |= {name: Competitor(broken) for name in notes or {}}
    timings = {name: harness.Timing([t, t, t]) for name, t in times.items()}
    case = Case(suite, case, competitors, **({"flops": 4e8, "bytes": 1e6} | options))
    return harness.Result(case, timings, notes or {}, threads=2)
