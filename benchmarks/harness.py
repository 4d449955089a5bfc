"""Timing: competitors interleaved in one process, medians with quartiles.

Machines are noisy and clocks drift, so a ratio is only worth something if both sides were timed
in the same seconds. Every round runs each competitor once, for a sample of at least `sample_s`, in
an order that rotates from round to round; the median over the rounds is what is reported, the
quartiles beside it.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass
class Case:
    """One line of a table: what is measured, and the competitors that do it.

    `competitors` maps a name to a callable that does the work once. `work` gives the floating-point
    operations of one call, for rates; 0 if a rate says nothing.
    """

    suite: str
    name: str
    competitors: dict[str, Callable[[], object]]
    ours: str
    baseline: str
    work: float = 0.0


@dataclass
class Timing:
    """Seconds a call over the rounds."""

    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.samples) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.samples, n=4)
        return low, high


@dataclass
class Result:
    case: Case
    timings: dict[str, Timing]

    @property
    def speedup(self) -> float:
        """How many times faster than the baseline ours is."""
        return self.timings[self.case.baseline].median / self.timings[self.case.ours].median


def _calls_for(function: Callable[[], object], sample_s: float) -> int:
    """How many calls make a sample of `sample_s`; they also warm the function up."""
    function()
    calls = 1
    while True:
        start = time.perf_counter()
        for _ in range(calls):
            function()
        elapsed = time.perf_counter() - start
        if elapsed >= sample_s / 2:
            return max(1, round(calls * sample_s / elapsed))
        calls *= 4


def measure(case: Case, *, rounds: int, sample_s: float) -> Result:
    """Times all competitors of a case."""
    names = list(case.competitors)
    calls = {name: _calls_for(case.competitors[name], sample_s) for name in names}
    timings = {name: Timing() for name in names}
    enabled = gc.isenabled()
    gc.disable()
    try:
        for round_ in range(rounds):
            for i in range(len(names)):
                name = names[(round_ + i) % len(names)]
                function, count = case.competitors[name], calls[name]
                start = time.perf_counter()
                for _ in range(count):
                    function()
                timings[name].samples.append((time.perf_counter() - start) / count)
    finally:
        if enabled:
            gc.enable()
    return Result(case, timings)


def geometric_mean(values: Iterator[float] | list[float]) -> float:
    return statistics.geometric_mean(values)
