"""Records as tables on the terminal."""

from collections import Counter

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from .harness import BASELINE, OURS, geometric_mean
from .records import Group, Record, groups, noise


def in_words(microseconds: float) -> str:
    if microseconds < 1e3:
        return f"{microseconds:.1f} us"
    return f"{microseconds / 1e3:.2f} ms"


def timed(record: Record) -> str:
    if record.median_us is None:
        return f"[dim]{record.note.partition(':')[0]}[/]"
    return f"{in_words(record.median_us)} [dim]±{record.spread:2.0f} %[/]"


def styled(ratio: float | None) -> str:
    if ratio is None:
        return ""
    style = "bold red" if ratio < 0.95 else "yellow" if ratio < 1 else "green"
    return f"[{style}]{ratio:.2f}[/]"


def percent_title(unit: str) -> str:
    return "% of peak" if unit == "GFLOP/s" else "% of stream"


def rated(record: Record | None) -> list[str]:
    if record is None or record.rate is None:
        return ["", ""]
    decimals = 0 if record.rate >= 100 else 1 if record.rate >= 1 else 2
    percent = f"{record.percent:.0f} %" if record.percent is not None else ""
    return [f"{record.rate:.{decimals}f}", percent]


def _unit(members: list[Group]) -> str:
    return next((r.unit for group in members for r in group.records if r.unit), "")


def _by_case(members: list[Group]) -> Table:
    """A row a case, a column a competitor."""
    table = Table()
    table.add_column("case")
    for record in members[0].records:
        table.add_column(record.competitor, justify="right")
    if unit := _unit(members):
        table.add_column(f"ours, {unit}", justify="right")
        table.add_column(percent_title(unit), justify="right")
    table.add_column("x", justify="right")
    for group in members:
        rate = rated(group.of(OURS)) if unit else []
        times = [timed(record) for record in group.records]
        table.add_row(group.name, *times, *rate, styled(group.speedup))
    return table


def _by_competitor(members: list[Group]) -> Table:
    """A row for each competitor of each case: for many of them, and for narrow terminals."""
    table = Table()
    table.add_column("case", overflow="fold")
    table.add_column("competitor", no_wrap=True)
    table.add_column("median", justify="right", no_wrap=True)
    if unit := _unit(members):
        table.add_column(unit, justify="right")
        table.add_column(percent_title(unit), justify="right")
    table.add_column("x", justify="right")
    for group in members:
        ours = group.of(OURS)
        for i, record in enumerate(group.records):
            both = ours and record is not ours and record.median_us
            ratio = record.median_us / ours.median_us if both else None
            name = f"[bold]{record.competitor}[/]" if record.role == OURS else record.competitor
            table.add_row(
                group.name if i == 0 else "",
                name,
                timed(record),
                *(rated(record) if unit else []),
                styled(ratio),
                end_section=i + 1 == len(group.records),
            )
    return table


def print_suite(console: Console, records: list[Record], machine_in_words: str) -> None:
    """One suite's medians, ours against the others, and what was not measured."""
    members = groups(records)
    names = {record.role: record.competitor for record in members[0].records}
    table, ratio = _by_case(members), f"{names[BASELINE]} / {names[OURS]}"
    if Measurement.get(console, console.options.update(width=1000), table).maximum > console.width:
        table, ratio = _by_competitor(members), f"competitor / {names[OURS]}"
    table.title = f"{records[0].suite}: median a call"
    table.caption = f"{machine_in_words}; x = {ratio}; ± half the distance of the quartiles"
    console.print(table)
    print_notes(console, records)
    speedups = [group.speedup for group in members if group.speedup]
    if speedups:
        losing = sum(speedup < 1 for speedup in speedups)
        console.print(
            f"{records[0].suite}: geometric mean {geometric_mean(speedups):.2f}x, least "
            f"{min(speedups):.2f}x, {losing} of {len(speedups)} slower than {names[BASELINE]}\n"
        )


def print_notes(console: Console, records: list[Record]) -> None:
    """Each competitor without figures, by name, with the reason."""
    for (name, note), cases in Counter((r.competitor, r.note) for r in records if r.note).items():
        times = "" if cases == 1 else f" ({cases} cases)"
        console.print(f"{name} {note}{times}", style="yellow", markup=False, highlight=False)


def print_losses(console: Console, records: list[Record]) -> None:
    """Every case in which another competitor is faster than ours, of all suites together."""
    table = Table(title="Where ours is slower", caption="x = faster / ours; ~ quartiles overlap")
    for column in ("suite", "case", "faster"):
        table.add_column(column)
    table.add_column("x", justify="right")
    for group in groups(records):
        for rival, ratio in group.losses():
            overlap = rival.q3_us >= group.of(OURS).q1_us
            mark = " ~" if overlap else "  "
            table.add_row(rival.suite, group.name, rival.competitor, styled(ratio) + mark)
    if table.row_count:
        console.print(table)
    else:
        console.print("No case in which a competitor is faster.")


def print_noise(console: Console, records: list[Record]) -> None:
    if warning := noise(records):
        console.print(warning, style="bold red", highlight=False)


def print_ceilings(console: Console, ceilings: dict[str, float], threads: int) -> None:
    one, several, read, stream = (ceilings[name] for name in ("fma_1", "fma", "read", "stream"))
    console.print(
        f"Ceilings: {one:.0f} float32 GFLOP/s on one thread, {several:.0f} on {threads}; memory "
        f"{read:.0f} GB/s read, {stream:.0f} GB/s in an Adam-like stream",
        highlight=False,
    )
