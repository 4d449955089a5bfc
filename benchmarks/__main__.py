"""python -m benchmarks [suite ...]: the short suites by default, --full for every shape."""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import ceilings, held, machine, report
from .compiler import NoCompiler
from .harness import FULL, OURS, SHORT, Case, Effort, measure
from .records import Record, records_of, write_csv
from .suites import SUITES, cases_of


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {number}")
    return number


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="suite", help=f"of {', '.join(SUITES)}")
    parser.add_argument("--full", action="store_true", help="every shape, more rounds")
    parser.add_argument(
        "--threads", type=positive, help="of torch, mlp_ext and the peers (default: torch's)"
    )
    parser.add_argument(
        "--isa", choices=sorted(held.MARCH),
        help="hold every competitor to this instruction set (default: what each takes by itself)",
    )  # fmt: skip
    parser.add_argument(
        "--csv", type=Path, default=Path("build/benchmarks.csv"), help="default: %(default)s"
    )
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw PNGs into this folder")
    parsed = parser.parse_args(arguments)
    unknown = set(parsed.suites) - set(SUITES)
    if unknown:
        parser.error(f"unknown suite {', '.join(sorted(unknown))}; expected {', '.join(SUITES)}")
    return parsed


class Limits:
    """The machine's ceilings, the best that was seen so far; none without a compiler."""

    def __init__(self, console: Console):
        self.console, self.values, self.usable = console, {}, True

    def update(self) -> None:
        if not self.usable:
            return
        try:
            new = ceilings.measured()
        except (NoCompiler, OSError) as error:
            self.usable = False
            self.console.print(f"No ceilings, and no per cent of them: {error}", style="yellow")
        else:
            self.values = {name: max(new[name], self.values.get(name, 0.0)) for name in new}


def run_suite(console: Console, cases: list[Case], effort: Effort, limits: Limits) -> list[Record]:
    results = []
    # It draws only between cases: a thread that redraws would run into the timings.
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, auto_refresh=False
    ) as progress:
        task = progress.add_task(cases[0].suite, total=len(cases))
        limits.update()
        for case in cases:
            progress.update(task, description=f"{case.suite}: {case.name}", refresh=True)
            results.append(measure(case, effort))
            progress.advance(task)
    return [record for result in results for record in records_of(result, limits.values)]


def main(arguments: list[str] | None = None, effort: Effort | None = None) -> int:
    """1 if ours could not be measured somewhere, otherwise 0."""
    options = parse_arguments(arguments)
    if options.isa:
        held.hold(options.isa, arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    threads = torch.get_num_threads()
    console = Console()
    limits = Limits(console)
    effort = effort or (FULL if options.full else SHORT)
    suites = {name: cases_of(name, options.full) for name in options.suites or SUITES}
    least = sum(effort.seconds(cases) for cases in suites.values())
    console.print(
        f"{sum(map(len, suites.values()))} cases, at least {least:.0f} s", highlight=False
    )
    records: list[Record] = []
    for cases in suites.values():
        records += (new := run_suite(console, cases, effort, limits))
        about = machine.describe()
        report.print_suite(console, new, machine.in_words(about, new[0].threads))
        write_csv(options.csv, records, about, limits.values)
    report.print_losses(console, records)
    report.print_noise(console, records)
    if limits.values:
        report.print_ceilings(console, limits.values, threads)
    console.print(f"Threads: {about['peer_threads']}", highlight=False)
    console.print(f"Figures: {options.csv}", highlight=False)
    if options.plots:
        from . import plots

        for path in plots.draw_all(options.plots, records, about, limits.values):
            console.print(f"Plot: {path}", highlight=False)
    return int(any(record.note for record in records if record.role == OURS))


if __name__ == "__main__":
    raise SystemExit(main())
