"""What a run prints: each thing found, figures beside predictions, and what is wrong or slower."""

import json
import math
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .. import report
from ..records import Record
from .environment import in_words
from .figures import Row, joined
from .programs import FAILED, PASSED
from .stages import Findings

STYLES = {"MISSED": "bold red", "met": "green", "lower": "yellow", "higher": "cyan"}


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}"


def figure_table(rows: list[Row]) -> Table:
    table = Table(title="Figures beside what was predicted of them", show_lines=False)
    table.add_column("case", overflow="fold")
    table.add_column("measure", overflow="fold")
    table.add_column("figure", justify="right", no_wrap=True)
    table.add_column("predicted", no_wrap=True)
    table.add_column("source", overflow="fold")
    table.add_column("verdict", overflow="fold")
    for row in rows:
        prediction = row.prediction
        source = " ".join(filter(None, (prediction.source, prediction.why))) if prediction else ""
        style = STYLES.get(row.verdict, "dim")
        value = _number(row.figure.value) if row.figure else ""
        note = row.figure.note if row.figure and row.figure.value is None else ""
        table.add_row(
            *row.name,
            value,
            prediction.in_words if prediction else "",
            source,
            f"[{style}]{row.verdict}[/]" + (f": {note}" if note else ""),
        )
    return table


def print_machine(console: Console, machine: dict) -> None:
    for key, value in machine.items():
        for line in value if isinstance(value, list) else [value]:
            console.print(f"{key:<20}{line}", highlight=False, markup=False)


def print_checks(console: Console, findings: Findings) -> None:
    wrong = [check for check in findings.checks if not check.passed]
    bits = sum(check.same_bits for check in findings.checks)
    number = len(findings.checks)
    console.print(
        f"Correctness: {number - len(wrong)} of {number} within twice PyTorch's error and the same "
        f"twice; bitwise equal twice: {bits}",
        style="bold red" if wrong else "",
        highlight=False,
    )
    for check in wrong:
        console.print(
            f"  {check.name}: error {check.error:.2e}, PyTorch {check.torch_error:.2e}, "
            f"{check.note}",
            style="red",
            markup=False,
            highlight=False,
        )


def print_programs(console: Console, findings: Findings) -> None:
    for outcome in findings.programs:
        style = {PASSED: "green", FAILED: "bold red"}.get(outcome.state, "yellow")
        line = f"{outcome.name}: {outcome.state} ({outcome.seconds:.0f} s)"
        console.print(line, style=style, highlight=False)
        console.print(outcome.text, markup=False, highlight=False)


def print_epilogues(console: Console, found: dict[str, list[str]] | str) -> None:
    if isinstance(found, str):
        if found:
            console.print(f"cuBLASLt's epilogues: not known ({found})", markup=False)
        return
    for arithmetic, names in found.items():
        text = f"cuBLASLt's epilogues in {arithmetic}: {', '.join(names) or 'none'}"
        console.print(text, highlight=False)


def print_times(console: Console, records: list[Record], machine: dict) -> None:
    for suite in dict.fromkeys(record.suite for record in records):
        # A table has one row of competitors, so cases with others get one of their own.
        tables: dict[tuple, list[Record]] = {}
        for case in dict.fromkeys(r.case for r in records if r.suite == suite):
            mine = [r for r in records if (r.suite, r.case) == (suite, case)]
            tables.setdefault(tuple(r.competitor for r in mine), []).extend(mine)
        for members in tables.values():
            report.print_suite(console, members, in_words(machine))
    if records:
        report.print_losses(console, records)
        report.print_noise(console, records)


def print_all(console: Console, findings: Findings, ending: str) -> None:
    print_machine(console, findings.machine)
    print_checks(console, findings)
    print_epilogues(console, findings.epilogues)
    print_programs(console, findings)
    print_times(console, findings.records, findings.machine)
    rows = joined(findings.all_figures, findings.machine.get("gpu", ""))
    console.print(figure_table(rows))
    for error in findings.errors:
        console.print(error, style="bold red", markup=False, highlight=False)
    console.print(ending, markup=False, highlight=False)


def _plain(value):
    """JSON has no inf and nan: they become words."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, findings: Findings) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_plain(findings.as_json()), indent=1, default=str, allow_nan=False)
    path.write_text(text + "\n")


def write_table(path: Path, findings: Findings, ending: str) -> None:
    """All that was printed, as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        print_all(Console(file=file, width=160, no_color=True), findings, ending)
