"""The phases of a run, each with its share of the time that is left."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from . import build, sanitizer
from .child import Child, module
from .results import Results, failures
from .worker import NOTHING

# Of what is left when the phase begins; what it does not take is the next one's.
SHARES = {"build": 0.6, "smoke": 0.35, "correctness": 0.3, "sanitizer": 0.25, "timings": 1.0}
# Seconds without a line, after which a worker is taken to hang; torch.compile is slow at first.
STALL = {"smoke": 40.0, "correctness": 40.0, "timings": 75.0}
RESTARTS = 6


class NothingToRunOn(Exception):
    """Why."""


@dataclass
class Run:
    results: Results
    folder: Path
    about: dict
    deadline: float  # of time.monotonic
    dry: bool = False
    parts: list[str] = field(default_factory=list)
    no_build: bool = False

    def program(self, name: str, state: str, **values) -> None:
        self.results.add("program", **{"name": name, "state": state, "text": ""} | values)


def seconds_for(phase: str, left: float, later: Iterable[str]) -> float:
    """The last phase has all that is left."""
    return left * (SHARES.get(phase, 1.0) if list(later) else 1.0)


def _build(run: Run, seconds: float) -> None:
    if run.dry or run.no_build or build.is_up_to_date(run.about):
        why = "not in a dry run" if run.dry else "--no-build" if run.no_build else "up to date"
        return run.program("build", "skipped", text=why)
    ending = build.build(run.about, run.folder / "build.log", seconds)
    state = "passed" if ending.code == 0 else "FAILED"
    text = "" if ending.code == 0 else f"{ending.why}\n{ending.text}"
    run.program("build", state, seconds=ending.seconds, text=text)


def supervise(run: Run, phase: str, seconds: float, stall: float) -> None:
    """Works through the phase's items in a process, and after a crash or a hang of one of them in
    another, which goes on behind it."""
    begin, results, log = time.monotonic(), run.results, run.folder / "log.txt"
    state, why = "passed", ""
    environment = {"OMP_NUM_THREADS": "1"} if run.dry else {}
    for _ in range(RESTARTS):
        left = seconds - (time.monotonic() - begin)
        before = len(results.read("begin", phase=phase))
        command = module("worker", phase, "--out", run.folder, "--until", time.time() + left)
        command += ["--dry-run"] * run.dry + ["--parts", *run.parts] * bool(run.parts)
        # The worker stops by itself before an item that would take too long.
        ending = Child(command, log, environment).wait(left + 2, results.path, stall)
        cut = ending.code is None and ending.why.startswith("cut off")
        for item in results.unfinished(phase):
            error = "" if cut else f"the process ended ({ending.why}): {ending.text[-300:]}"
            results.add("end", phase=phase, item=item, error=error, cut=cut)
        if ending.code == NOTHING:
            raise NothingToRunOn(ending.text)
        if ending.code == 0 or cut:
            state = "cut off" if cut else "passed"
            break
        if len(results.read("begin", phase=phase)) == before:  # not even one: it does not start
            state, why = "FAILED", f"{ending.why}\n{ending.text}"
            break
    else:
        state, why = "FAILED", f"{RESTARTS} processes have ended"
    done = len(results.read("end", phase=phase))
    text = why or f"{done} items"
    run.program(phase, state, seconds=time.monotonic() - begin, text=text)


def _sanitize(run: Run, seconds: float) -> None:
    for values in sanitizer.run(run.folder, seconds, run.dry):
        run.program(**values)


def run_all(run: Run, chosen: list[str], after_each: Callable[[], None], tell=print) -> None:
    """Stops where the extension does not build or load: what follows could tell no more."""
    others = {"build": _build, "sanitizer": _sanitize}
    for i, phase in enumerate(chosen):
        left = run.deadline - time.monotonic()
        if left < 5:
            run.results.add("left_out", phase=phase, item=phase)
            continue
        seconds = seconds_for(phase, left, chosen[i + 1 :])
        tell(f"{phase}: {seconds:.0f} of {left:.0f} s")
        wrong, before = len(failures(run.results)), len(run.results.read("program"))
        if phase in others:
            others[phase](run, seconds)
        else:
            supervise(run, phase, seconds, STALL[phase])
        after_each()
        for last in run.results.read("program")[before:]:
            tell(f"{last['name']}: {last['state']} {last['text'][:200]}")
        new = failures(run.results)[wrong:]
        if new:
            tell(f"WRONG in {phase} ({len(new)}), first: {new[0][:1500]}")
        if last["state"] == "FAILED" and phase in ("build", "smoke"):
            break
