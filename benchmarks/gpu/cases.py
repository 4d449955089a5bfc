"""A case of the harness, with how the GPU's time of it is taken."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..harness import OURS, Call, Case, Effort, Unavailable, measure
from ..records import Record, records_of
from .budget import Budget

Make = Callable[[int], Callable[[], object]]  # make(i) prepares the work on the i-th set of inputs


@dataclass(frozen=True)
class GpuCase:
    """`sets`: each call does the work that many times, on as many sets of inputs; times are of one.
    `wall`: the host's clock, launches included; otherwise the GPU's, of a recorded graph.
    `seconds`: about what it takes to prepare, mostly torch.compile's time."""

    case: Case
    sets: int = 1
    wall: bool = False
    seconds: float = 3.0


def recorded(device, make: Make, sets: int) -> Callable[[], Call]:
    """A competitor's `make`: a graph of the work on each of the sets."""

    def prepare() -> Call:
        works = [make(i) for i in range(sets)]

        # All results at once would be more memory than some GPUs have: only the last is kept.
        def all_of_them() -> object:
            result = None
            for work in works:
                result = work()
            return result

        return device.record(all_of_them)

    return prepare


def unavailable(reason: str) -> Callable[[], Call]:
    def prepare() -> Call:
        raise Unavailable(reason)

    return prepare


def run(device, cases: Iterable[GpuCase], effort: Effort, budget: Budget) -> list[Record]:
    """Times them while there is time."""
    records: list[Record] = []
    for each in cases:
        least = each.seconds + 2 * effort.budget_s
        if not budget.has_time_for(f"{each.case.suite}: {each.case.name}", least):
            continue
        clock = device.wall_seconds if each.wall else device.gpu_seconds
        result = measure(each.case, effort, clock)
        for timing in result.timings.values():
            timing.samples = [sample / each.sets for sample in timing.samples]
        records += records_of(result, {})
        device.release()
    return records


def failures(records: Iterable[Record]) -> list[Record]:
    """Those of ours that have no time."""
    return [record for record in records if record.role == OURS and record.median_us is None]
