"""Results as a table on the terminal and as CSV."""

import csv
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .harness import Result, geometric_mean


def in_words(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.2f} ms"


def _styled(speedup: float) -> str:
    style = "bold red" if speedup < 0.95 else "yellow" if speedup < 1 else "green"
    return f"[{style}]{speedup:.2f}[/]"


def _by_case(table: Table, results: list[Result]) -> None:
    """A row a case, a column a competitor."""
    table.add_column("case")
    for name in results[0].case.competitors:
        table.add_column(name, justify="right")
    if results[0].case.work:
        table.add_column("GFLOP/s", justify="right")
    table.add_column("x", justify="right")
    for result in results:
        row = [in_words(timing.median) for timing in result.timings.values()]
        if result.case.work:
            ours = result.timings[result.case.ours].median
            row.append(f"{result.case.work / ours / 1e9:.0f}")
        table.add_row(result.case.name, *row, _styled(result.speedup))


def _by_competitor(table: Table, results: list[Result]) -> None:
    """A row a competitor, a column a case: for many competitors."""
    table.add_column("competitor")
    for result in results:
        table.add_column(result.case.name, justify="right")
    for name in results[0].case.competitors:
        table.add_row(name, *(in_words(result.timings[name].median) for result in results))


def print_suite(console: Console, suite: str, results: list[Result], machine: dict) -> None:
    """A suite's medians, and ours against the baseline, losses marked."""
    case = results[0].case
    table = Table(
        title=f"{suite}: median a call",
        caption=f"{machine['cpu']}, {machine['threads']} threads, {machine['isa']}, torch "
        f"{machine['torch']}, commit {machine['commit']}; x = {case.baseline} / {case.ours}",
    )
    (_by_competitor if len(case.competitors) > 4 else _by_case)(table, results)
    console.print(table)
    speedups = [result.speedup for result in results]
    losing = sum(speedup < 1 for speedup in speedups)
    console.print(
        f"{suite}: geometric mean {geometric_mean(speedups):.2f}x, least {min(speedups):.2f}x, "
        f"{losing} of {len(speedups)} slower than {case.baseline}\n"
    )


def write_csv(path: Path, results: list[Result], machine: dict) -> None:
    """A row for each competitor of each case; times in microseconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["suite", "case", "competitor", "median_us", "q1_us", "q3_us", "speedup", *machine]
        )
        for result in results:
            for name, timing in result.timings.items():
                low, high = timing.quartiles
                ratio = result.timings[result.case.baseline].median / timing.median
                writer.writerow(
                    [
                        result.case.suite,
                        result.case.name,
                        name,
                        *(f"{value * 1e6:.3f}" for value in (timing.median, low, high)),
                        f"{ratio:.3f}",
                        *machine.values(),
                    ]
                )
