"""python -m benchmarks.readme CSV: rewrites the README's table of the `loop` suite from a CSV.

The table goes between <!-- benchmarks:loop:begin --> and <!-- benchmarks:loop:end -->; everything
else stays as it is. It names the machine, the commit, the date and the threads, and says below
where ours is slower.
"""

import argparse
import sys
from pathlib import Path

from .compiler import ROOT
from .harness import BASELINE, OURS
from .records import Group, groups, noise, read_csv

SUITE = "loop"
BEGIN, END = f"<!-- benchmarks:{SUITE}:begin -->", f"<!-- benchmarks:{SUITE}:end -->"


def figure(microseconds: float) -> str:
    return f"{microseconds:.0f}" if microseconds >= 100 else f"{microseconds:.1f}"


def table(members: list[Group]) -> list[str]:
    """A row a net; the fastest is bold."""
    names = [record.competitor for record in members[0].records]
    baseline = next(r.competitor for r in members[0].records if r.role == BASELINE)
    ours = next(r.competitor for r in members[0].records if r.role == OURS)
    lines = [
        f"| net, batch | {' | '.join(names)} | {ours} over {baseline} |",
        "|---" * (len(names) + 2) + "|",
    ]
    for group in members:
        times = [record.median_us for record in group.records]
        least = min((time for time in times if time), default=None)
        cells = [
            "-" if time is None else f"**{figure(time)}**" if time == least else figure(time)
            for time in times
        ]
        ratio = f"{group.speedup:.2f}x" if group.speedup else "-"
        lines.append(f"| {group.name} | {' | '.join(cells)} | {ratio} |")
    return lines


def losing(members: list[Group]) -> list[str]:
    rows = [
        f"{group.name}: {ratio:.2f}x of {rival.competitor}"
        for group in members
        for rival, ratio in group.losses()
    ]
    if not rows:
        return ["No competitor is faster in any row."]
    return ["Where another is faster:", "", *(f"- {row}" for row in rows)]


def section(path: Path) -> str:
    """The text between the markers; ValueError for a CSV without the suite."""
    records, machine, _ = read_csv(path)
    members = groups(records, SUITE)
    if not members:
        raise ValueError(f"{path} has no rows of the suite {SUITE}")
    threads = members[0].records[0].threads
    lines = [
        f"Microseconds a training step, medians, interleaved in one process: {machine['cpu']}, "
        f"{machine['isa']}, {threads} thread{'s' * (threads != 1)} "
        f"(threads used: {machine['peer_threads']}), torch {machine['torch']}, commit "
        f"{machine['commit']}, {machine['date']}.",
        "",
        *table(members),
        "",
        *losing(members),
    ]
    missing = {r.competitor: r.note for group in members for r in group.records if r.note}
    lines += [""] * bool(missing) + [f"- {name} {note}" for name, note in missing.items()]
    return "\n".join(lines)


def rewritten(text: str, body: str) -> str:
    """`text` with `body` between the markers; ValueError unless it has each of them once."""
    for marker in (BEGIN, END):
        if text.count(marker) != 1:
            raise ValueError(f"expected {marker} once, found it {text.count(marker)} times")
    before, _, rest = text.partition(BEGIN)
    if END not in rest:
        raise ValueError(f"{END} stands before {BEGIN}")
    return f"{before}{BEGIN}\n{body}\n{END}{rest.partition(END)[2]}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("csv", type=Path, help="written by python -m benchmarks")
    parser.add_argument(
        "--readme", type=Path, default=ROOT / "README.md", help="default: %(default)s"
    )
    options = parser.parse_args(arguments)
    try:
        text = rewritten(options.readme.read_text(), section(options.csv))
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    if warning := noise(read_csv(options.csv)[0]):
        print(warning, file=sys.stderr)
    options.readme.write_text(text)
    print(f"{options.readme}: table rewritten from {options.csv}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
