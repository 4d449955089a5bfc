"""Several processes at once, each with all of torch's threads: workers of reinforcement learning,
sweeps, n_jobs. A call is the same number of steps, shared by 1, 2 or 4 processes, so that its time
stays the same as long as they do not get in each other's way.

As a program (python -m benchmarks.bench_processes COMPETITOR NET THREADS), one such process: a line
with a number on stdin, and so many steps later a line on stdout.
"""

import subprocess
import sys
from collections.abc import Iterator

import torch

from .compiler import ROOT
from .harness import BASELINE, OURS, OWN, Call, Case, Competitor
from .models import label, step_flops
from .peers import COMPETITORS

# A tenth of a second at least: many of the scheduler's slices.
STEPS = {"rl": 800, "sac": 80}
ROLES = {"torch fused Adam": BASELINE, "TrainStep": OURS, "mlp_ext": OWN}
LINE = "done\n"


class Team:
    """`processes` of one competitor, which wait until they are called, and end with this object."""

    def __init__(self, competitor: str, name: str, processes: int):
        command = [sys.executable, "-m", __spec__.name, competitor, name]
        self.steps = STEPS[name] // processes
        self.members = [
            subprocess.Popen(
                [*command, str(torch.get_num_threads())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            for _ in range(processes)
        ]
        self.await_all()

    def await_all(self) -> None:
        for member in self.members:
            if member.stdout.readline() != LINE:
                raise RuntimeError("a process of the benchmark ended early")

    def __call__(self) -> None:
        for member in self.members:
            member.stdin.write(f"{self.steps}\n")
            member.stdin.flush()
        self.await_all()

    def __del__(self):
        for member in self.members:
            member.stdin.close()
            member.stdout.close()
            member.wait()


def team(competitor: str, name: str, processes: int) -> Call:
    return Team(competitor, name, processes)


def cases(full: bool) -> Iterator[Case]:
    for name in STEPS:
        for processes in (1, 2, 4) if full else (1, 2):  # four of PyTorch's may take 20 s a call
            yield Case(
                "processes",
                f"{label(name)}: {STEPS[name]} steps by {processes}",
                {
                    competitor: Competitor(
                        lambda competitor=competitor, name=name, processes=processes: team(
                            competitor, name, processes
                        ),
                        role,
                    )
                    for competitor, role in ROLES.items()
                },
                flops=STEPS[name] * step_flops(name),
                ceiling="fma",
            )


def main() -> None:
    competitor, name, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    step = COMPETITORS[competitor].trainer(name).step
    for _ in range(20):
        step()
    sys.stdout.write(LINE)
    sys.stdout.flush()
    for line in sys.stdin:
        for _ in range(int(line)):
            step()
        sys.stdout.write(LINE)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
