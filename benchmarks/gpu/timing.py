"""A case of the harness as an item of work: every competitor's time, a line each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..harness import BASELINE, OURS, OWN, PEER, Call, Case, Competitor, Effort, measure
from .worker import Item

EFFORT = Effort(rounds=9, sample_s=0.004, budget_s=0.5)
TINY = Effort(rounds=1, sample_s=1e-6, budget_s=0.01)
COMPILE_SECONDS = 8.0

Make = Callable[[int], Callable[[], object]]  # make(i) prepares the work on the i-th set of inputs


@dataclass(frozen=True)
class Timed:
    """`sets`: each call does the work that many times, on as many sets of inputs; times are of one.
    `wall`: the host's clock, launches included; otherwise the GPU's, of a recorded graph.
    `paths`: competitor -> which of our CUDA paths it takes, where it takes one and no other."""

    case: Case
    sets: int = 1
    wall: bool = False
    paths: dict[str, str] = field(default_factory=dict)

    def lines(self, device) -> Iterator[dict]:
        clock = device.wall_seconds if self.wall else device.gpu_seconds
        result = measure(self.case, TINY if device.tiny else EFFORT, clock)
        for name, competitor in self.case.competitors.items():
            timing = result.timings.get(name)
            times = (timing.median, *timing.quartiles) if timing else (None, None, None)
            times = [t and 1e6 * t / self.sets for t in times]
            yield {
                "kind": "time", "suite": self.case.suite, "case": self.case.name,
                "competitor": name, "role": competitor.role, "path": self.paths.get(name, ""),
                **dict(zip(("us", "q1", "q3"), times, strict=True)),
                "flops": self.case.flops, "bytes": self.case.bytes,
                "note": result.notes.get(name, ""),
            }  # fmt: skip
        device.release()

    def item(self) -> Item:
        compiles = any("torch.compile" in name for name in self.case.competitors)
        return Item(self.case.name, self.lines, 2 + COMPILE_SECONDS * compiles)


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


def compare(
    device, suite: str, name: str, sets: int, makes: dict[str, Callable[[], Make]], paths, **work
) -> Timed:
    """makes: by their names torch is the baseline, mlp_ext ours, and mlp_ext with more words
    another form of ours. Each is called when the case runs, as torch.compile is to find the case's
    precision. work: flops or bytes."""

    def competitor(name: str, make: Callable[[], Make]) -> Competitor:
        roles = {"torch": BASELINE, "mlp_ext": OURS}
        role = roles.get(name, OWN if name.startswith("mlp_ext") else PEER)
        return Competitor(lambda: recorded(device, make(), sets)(), role)

    competitors = {name: competitor(name, make) for name, make in makes.items()}
    return Timed(Case(suite, name, competitors, **work), sets, paths=paths)
