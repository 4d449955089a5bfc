"""Timing: competitors interleaved in one process, medians with quartiles.

Machines are noisy and clocks drift, so a ratio is only worth something if both sides were timed
in the same seconds. Every round runs each competitor once, for a sample of at least `sample_s`, in
an order that rotates from round to round; the median over the rounds is what is reported, the
quartiles beside it.
"""

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

Call = Callable[[], object]

OURS, BASELINE, PEER, OWN = ROLES = ("ours", "baseline", "peer", "own")


class Unavailable(Exception):
    """Raised by a competitor's `make` where it cannot run here: a package that is missing."""


@dataclass(frozen=True)
class Competitor:
    """`make()` prepares everything and returns a callable that does the work once.

    `role`: "ours" is judged against every "baseline" (the one that ratios are of; one a case) and
    "peer"; "own" is another form of ours, shown and not raced.
    """

    make: Callable[[], Call]
    role: str = PEER


@dataclass(frozen=True)
class Case:
    """One line of a table: what is measured, and the competitors that do it.

    `flops` and `bytes` are those of one call, the bytes as the least that must move. `ceiling` says
    what the rate is compared with ("fma_1", "fma", "stream": see ceilings.py); "" shows no rate.
    `threads` is for a case that does not use torch's number of threads.
    """

    suite: str
    name: str
    competitors: dict[str, Competitor]
    flops: float = 0.0
    bytes: float = 0.0
    ceiling: str = ""
    threads: int | None = None

    def named(self, role: str) -> str:
        return next(name for name, c in self.competitors.items() if c.role == role)


def against(baseline: Callable[[], Call], ours: Callable[[], Call]) -> dict[str, Competitor]:
    """The usual two competitors."""
    return {"torch": Competitor(baseline, BASELINE), "mlp_ext": Competitor(ours, OURS)}


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
    """`notes` says of each competitor without timings why it has none."""

    case: Case
    timings: dict[str, Timing]
    notes: dict[str, str]
    threads: int


@dataclass(frozen=True)
class Effort:
    """How long to measure: `rounds` samples of `sample_s` each, but fewer (at least three) for a
    case whose calls are so long that it would take more than `budget_s`."""

    rounds: int
    sample_s: float
    budget_s: float

    def rounds_for(self, round_s: float) -> int:
        """`round_s`: how long a round takes."""
        return max(min(3, self.rounds), min(self.rounds, int(self.budget_s / round_s)))

    def seconds(self, cases: list[Case]) -> float:
        """What the cases take at least; compilation and calls longer than a sample come on top."""
        return sum(len(case.competitors) for case in cases) * (self.rounds + 1) * self.sample_s


SHORT = Effort(rounds=11, sample_s=0.01, budget_s=1.5)
FULL = Effort(rounds=21, sample_s=0.02, budget_s=6.0)

SLOW_S = 0.05


@contextlib.contextmanager
def torch_threads(number: int | None) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield number or before
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def no_gc() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def walled(call: Call, calls: int) -> float:
    """Seconds that the calls take, one after the other. `measure` takes another clock for work that
    a call only starts, as on a GPU."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - start


Clock = Callable[[Call, int], float]


def _calls_for(call: Call, sample_s: float, clock: Clock) -> tuple[int, float]:
    """How many calls make a sample of `sample_s`, and how long it takes; warms the call up."""
    call()
    calls = 1
    while (elapsed := clock(call, calls)) < sample_s / 2:
        calls *= 4
    wanted = max(1, round(calls * sample_s / elapsed))
    return wanted, elapsed * wanted / calls


def _prepare(
    case: Case, sample_s: float, clock: Clock
) -> tuple[dict[str, tuple[Call, int, float]], dict]:
    """(name -> (call, calls a sample, seconds a sample), name -> why it does not run)."""
    ready, notes = {}, {}
    for name, competitor in case.competitors.items():
        try:
            call = competitor.make()
            ready[name] = (call, *_calls_for(call, sample_s, clock))
        except Unavailable as error:
            notes[name] = f"skipped: {error}"
        except Exception as error:  # whatever a peer does wrong, the others are still measured
            reason = str(error).strip().partition("\n")[0]
            notes[name] = f"failed: {type(error).__name__}: {reason}"
    return ready, notes


def measure(case: Case, effort: Effort, clock: Clock = walled) -> Result:
    """Times all competitors of a case."""
    with torch_threads(case.threads) as threads:
        ready, notes = _prepare(case, effort.sample_s, clock)
        timings = {name: Timing() for name in ready}
        names = list(ready)
        # An untimed call before each sample, because caches and cores still belong to whoever ran
        # before; slow calls can do without.
        settles = {name: seconds / calls < SLOW_S for name, (_, calls, seconds) in ready.items()}
        round_s = sum(
            seconds * (1 + settles[name] / calls) for name, (_, calls, seconds) in ready.items()
        )
        with no_gc():
            for round_ in range(effort.rounds_for(round_s) if ready else 0):
                for i in range(len(names)):
                    name = names[(round_ + i) % len(names)]
                    call, calls, _ = ready[name]
                    if settles[name]:
                        call()
                    timings[name].samples.append(clock(call, calls) / calls)
    return Result(case, timings, notes, threads)


def geometric_mean(values: Iterator[float] | list[float]) -> float:
    return statistics.geometric_mean(values)
