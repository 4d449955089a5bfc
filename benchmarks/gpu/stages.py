"""The two stages, as lists of parts; each part stops starting work when the time is spent."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field

from ..harness import Effort
from ..records import Record
from . import adam, ceilings, correctness, environment, layers, losses, programs, questions, steps
from .budget import Budget
from .cases import GpuCase, failures, run
from .correctness import Check
from .figures import Figure, as_json, joined, of_records
from .ops import GRID, SMALL
from .programs import FAILED, Outcome

SECONDS = {"smoke": 220.0, "full": 580.0}
SMOKE = Effort(rounds=5, sample_s=0.005, budget_s=0.5)
FULL = Effort(rounds=9, sample_s=0.005, budget_s=0.6)


@dataclass
class Findings:
    """All that a run found out."""

    stage: str
    machine: dict
    figures: list[Figure] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    programs: list[Outcome] = field(default_factory=list)
    epilogues: dict[str, list[str]] | str = ""
    errors: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Something of ours is wrong; slow is not wrong."""
        return bool(
            self.errors
            or any(not check.passed for check in self.checks)
            or any(outcome.state == FAILED for outcome in self.programs)
            or failures(self.records)
        )

    @property
    def all_figures(self) -> list[Figure]:
        return [*self.figures, *of_records(self.records, ceilings.value_of(self.figures, "copy"))]

    def as_json(self) -> dict:
        return {
            "stage": self.stage,
            "machine": self.machine,
            "figures": as_json(joined(self.all_figures, self.machine.get("gpu", ""))),
            "checks": [asdict(check) for check in self.checks],
            "records": [asdict(record) for record in self.records],
            "programs": [asdict(outcome) for outcome in self.programs],
            "cublaslt_epilogues": self.epilogues,
            "errors": self.errors,
            "left_out": self.left_out,
        }


@dataclass
class Run:
    """What a part gets; it adds to `findings`."""

    device: object
    budget: Budget
    effort: Effort
    findings: Findings


def find_ceilings(run_: Run) -> None:
    run_.findings.figures += ceilings.measured(run_.device, run_.effort, run_.budget)


def ask(run_: Run) -> None:
    run_.findings.epilogues = questions.epilogues()
    run_.findings.figures += questions.rates(run_.device, run_.findings.figures)


def check_small(run_: Run) -> None:
    run_.findings.checks += correctness.checked(run_.device, SMALL, run_.budget)
    run_.findings.figures.append(correctness.float32_error(run_.device, SMALL))


def check_grid(run_: Run) -> None:
    rest = [shape for shape in GRID if shape not in SMALL]
    run_.findings.checks += correctness.checked(run_.device, rest, run_.budget)


def test(run_: Run) -> None:
    run_.findings.programs.append(programs.product_tests(run_.budget))


def sanitize(run_: Run) -> None:
    run_.findings.programs += programs.sanitizer(run_.budget)


def _timing(cases: Callable[[object], Iterable[GpuCase]]) -> Callable[[Run], None]:
    def part(run_: Run) -> None:
        run_.findings.records += run(run_.device, cases(run_.device), run_.effort, run_.budget)

    return part


# In the order of their worth, as the last ones are what is left out.
PARTS: dict[str, dict[str, Callable[[Run], None]]] = {
    "smoke": {
        "ceilings": find_ceilings,
        "correctness": check_small,
        "questions": ask,
        "adam": _timing(lambda device: adam.cases(device, (1, 16))),
        "steps": _timing(lambda device: steps.cases(device, steps.NETS[2:3])),
    },
    "full": {
        "ceilings": find_ceilings,
        "correctness": check_small,
        "questions": ask,
        "grid": check_grid,
        "tests": test,
        "sanitizer": sanitize,
        "steps": _timing(steps.cases),
        "adam": _timing(adam.cases),
        "stacks": _timing(layers.stack_cases),
        "losses": _timing(losses.cases),
        "layers": _timing(layers.linear_cases),
    },
}


def run_stage(
    stage: str,
    device,
    budget: Budget,
    only: Iterable[str] = (),
    effort: Effort | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Findings:
    """`only`: names of parts; none for all. A part that fails as a whole is an error of the run,
    and the others follow; what it had found is kept."""
    findings = Findings(stage, environment.describe(device))
    chosen = set(only)
    for name, part in PARTS[stage].items():
        if chosen and name not in chosen:
            continue
        if not budget.has_time_for(name):
            continue
        tell(f"{name} ({budget.left:.0f} s left)")
        try:
            part(Run(device, budget, effort or (FULL if stage == "full" else SMOKE), findings))
        except Exception as error:
            findings.errors.append(f"{name}: {type(error).__name__}: {error}")
    findings.left_out = list(budget.left_out)
    return findings
