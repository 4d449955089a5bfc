"""python -m benchmarks.readme CSV: rewrites the README's tables of suites from a CSV.

A suite's table goes between <!-- benchmarks:loop:begin --> and <!-- benchmarks:loop:end -->, `loop`
being its name; everything else stays as it is. It names the machine, the commit, the date and the
threads, and says below where ours is slower.
"""

import argparse
import sys
from pathlib import Path

from .compiler import ROOT
from .harness import BASELINE, OURS
from .records import Group, groups, noise, read_csv

# Suite -> what is timed, and the heading of the first column.
SUITES = {"loop": ("a training step", "net, batch"), "epoch": ("an epoch", "data set")}


def markers(suite: str) -> tuple[str, str]:
    return f"<!-- benchmarks:{suite}:begin -->", f"<!-- benchmarks:{suite}:end -->"


def figure(microseconds: float) -> str:
    return f"{microseconds:.0f}" if microseconds >= 100 else f"{microseconds:.1f}"


def table(members: list[Group], heading: str) -> list[str]:
    """A row a net; the fastest is bold."""
    names = [record.competitor for record in members[0].records]
    baseline = next(r.competitor for r in members[0].records if r.role == BASELINE)
    ours = next(r.competitor for r in members[0].records if r.role == OURS)
    lines = [
        f"| {heading} | {' | '.join(names)} | {ours} over {baseline} |",
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


def section(path: Path, suite: str) -> str:
    """The text between the markers; ValueError for a CSV without the suite."""
    records, machine, _ = read_csv(path)
    members = groups(records, suite)
    if not members:
        raise ValueError(f"{path} has no rows of the suite {suite}")
    threads = members[0].records[0].threads
    timed, heading = SUITES[suite]
    lines = [
        f"Microseconds {timed}, medians, interleaved in one process: {machine['cpu']}, "
        f"{machine['isa']}, {threads} thread{'s' * (threads != 1)} "
        f"(threads used: {machine['peer_threads']}), torch {machine['torch']}, commit "
        f"{machine['commit']}, {machine['date']}.",
        "",
        *table(members, heading),
        "",
        *losing(members),
    ]
    missing = {r.competitor: r.note for group in members for r in group.records if r.note}
    lines += [""] * bool(missing) + [f"- {name} {note}" for name, note in missing.items()]
    return "\n".join(lines)


def rewritten(text: str, suite: str, body: str) -> str:
    """`text` with `body` between the markers; ValueError unless it has each of them once."""
    begin, end = markers(suite)
    for marker in (begin, end):
        if text.count(marker) != 1:
            raise ValueError(f"expected {marker} once, found it {text.count(marker)} times")
    before, _, rest = text.partition(begin)
    if end not in rest:
        raise ValueError(f"{end} stands before {begin}")
    return f"{before}{begin}\n{body}\n{end}{rest.partition(end)[2]}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("csv", type=Path, help="written by python -m benchmarks")
    parser.add_argument(
        "--readme", type=Path, default=ROOT / "README.md", help="default: %(default)s"
    )
    options = parser.parse_args(arguments)
    try:
        text = options.readme.read_text()
        for suite in SUITES:
            text = rewritten(text, suite, section(options.csv, suite))
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    if warning := noise(read_csv(options.csv)[0]):
        print(warning, file=sys.stderr)
    options.readme.write_text(text)
    print(f"{options.readme}: tables rewritten from {options.csv}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
