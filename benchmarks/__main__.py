"""python -m benchmarks [suite ...]: the short suites by default, --full for every shape."""

import argparse
import importlib
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from . import machine, report
from .harness import measure

SUITES = ("loop", "linear", "optimizers", "losses", "registration")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="suite", help=f"of {', '.join(SUITES)}")
    parser.add_argument("--full", action="store_true", help="every shape, more rounds")
    parser.add_argument("--threads", type=int, help="torch.set_num_threads (default: torch's)")
    parser.add_argument(
        "--csv", type=Path, default=Path("build/benchmarks.csv"), help="%(default)s"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.suites) - set(SUITES)
    if unknown:
        parser.error(f"unknown suite {', '.join(sorted(unknown))}; expected {', '.join(SUITES)}")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    console = Console()
    about = machine.describe()
    rounds, sample_s = (21, 0.02) if arguments.full else (9, 0.01)
    everything = []
    for suite in arguments.suites or SUITES:
        module = importlib.import_module(f".bench_{suite}", __package__)
        cases = list(module.cases(arguments.full))
        results = []
        with Progress(console=console, transient=True) as progress:
            for case in progress.track(cases, description=suite):
                results.append(measure(case, rounds=rounds, sample_s=sample_s))
        report.print_suite(console, suite, results, about)
        everything += results
    report.write_csv(arguments.csv, everything, about)
    console.print(f"Figures written to {arguments.csv}")


if __name__ == "__main__":
    main()
