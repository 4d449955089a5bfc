"""python -m benchmarks.readme [CSV ...]: rewrites what README and docs/ say of speed.

Each CSV is of one kind of machine (AVX-512, AVX2); without any, the newest of each kind in
benchmarks/results. Written are the blocks between <!-- benchmarks:NAME:begin --> and
<!-- benchmarks:NAME:end --> in README.md and docs/benchmarks.md, the README's picture (front.py),
and beside each CSV its plots (plots.py). A block names machine, commit, date and threads, and says
where ours is slower. Everything outside the blocks stays as it is.
"""

import argparse
import json
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from . import front, machine
from .compiler import ROOT
from .harness import BASELINE, OURS, OWN
from .records import Group, Record, groups, noise, read_csv

RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = ("README.md", "docs/benchmarks.md")
PICTURE = "docs/images/speed-up-{}.svg"
# Plot -> the suite that it is drawn from, what it shows.
PLOTS = {
    "loop": ("loop", "Each competitor's training step over fused Adam of PyTorch"),
    "crossover": ("linear", "linear_relu over F.relu(F.linear), by batch M and sizes K to N"),
    "roofline": ("loop", "Matrix products and training steps under the machine's limits"),
}

# Suite -> what is timed, and the heading of the first column.
SUITES = {"loop": ("a training step", "net, batch"), "epoch": ("an epoch", "data set")}

# The kinds that readers have; one without results is named as such.
KINDS = ("AVX-512", "AVX2")


@dataclass(frozen=True)
class Results:
    """One CSV."""

    path: Path
    records: list[Record]
    about: dict[str, str]
    ceilings: dict[str, float]

    @property
    def kind(self) -> str:
        return machine.kind(self.about)

    @property
    def prefix(self) -> str:
        """Of the names of the plots beside it."""
        return self.path.stem.removesuffix("-full")

    def plots(self) -> dict[str, str]:
        """Plot -> what it shows, of those that there are rows to draw from."""
        suites = {record.suite for record in self.records}
        return {name: words for name, (suite, words) in PLOTS.items() if suite in suites}

    def members(self, suite: str) -> list[Group]:
        """ValueError for a CSV without the suite."""
        found = groups(self.records, suite)
        if not found:
            raise ValueError(f"{self.path} has no rows of the suite {suite}")
        return found


def markers(name: str) -> tuple[str, str]:
    return f"<!-- benchmarks:{name}:begin -->", f"<!-- benchmarks:{name}:end -->"


def figure(microseconds: float) -> str:
    return f"{microseconds:.0f}" if microseconds >= 100 else f"{microseconds:.1f}"


def table(members: list[Group], heading: str) -> list[str]:
    """A row a net; the fastest is bold."""
    names = [record.competitor for record in members[0].records]
    baseline, ours = members[0].named(BASELINE), members[0].named(OURS)
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
    """Where ours, or a TrainStep in the same loop, is slower than another."""
    rows = []
    for group in members:
        for role in (OURS, OWN) if group.records[0].suite == "loop" else (OURS,):
            mine = group.of(role)
            for rival, ratio in group.losses(role):
                rows.append(f"{group.name}: {mine.competitor} {ratio:.2f}x of {rival.competitor}")
    return rows


def suite_block(results: list[Results], suite: str) -> str:
    """A table for each machine."""
    timed, heading = SUITES[suite]
    lines = []
    for result in results:
        members, about = result.members(suite), result.about
        threads = members[0].records[0].threads
        lines += [
            f"**{result.kind}.** Microseconds {timed}, medians, interleaved in one process: "
            f"{machine.host(about)}, {about['isa']}, {threads} thread{'s' * (threads != 1)} "
            f"(threads used: {about['peer_threads']}), torch {about['torch']}, commit "
            f"{about['commit']}, {about['date']}.",
            "",
            *table(members, heading),
            "",
        ]
        if rows := losing(members):
            lines += ["Where another is faster:", "", *(f"- {row}" for row in rows), ""]
        else:
            lines += ["No competitor is faster in any row.", ""]
        missing = {r.competitor: r.note for group in members for r in group.records if r.note}
        lines += [f"- {name} {note}" for name, note in missing.items()] + [""] * bool(missing)
    for kind in without_results(results):
        lines += [f"**{kind}.** Not measured yet for this table.", ""]
    return "\n".join(lines[:-1])


def without_results(results: list[Results]) -> list[str]:
    return [kind for kind in KINDS if kind not in {result.kind for result in results}]


def span(ratios: list[float | None]) -> str:
    known = [ratio for ratio in ratios if ratio]
    least, most = min(known), max(known)
    return f"{least:.2f}x to {most:.{1 if most < 20 else 0}f}x"


def losing_in_short(members: list[Group]) -> str:
    """The same for a cell: what is faster, in which nets, and how much at most."""
    found: dict[str, tuple[list[str], float]] = {}
    for group in members:
        for role in (OURS, OWN):
            for rival, ratio in group.losses(role):
                nets, least = found.get(rival.competitor, ([], ratio))
                net = group.name.split(" ")[0]
                found[rival.competitor] = (nets + [net] * (net not in nets), min(least, ratio))
    cells = [
        f"{rival} is faster in {' and '.join(nets)} ({least:.2f}x at worst)"
        for rival, (nets, least) in found.items()
    ]
    return "; ".join(cells) or f"none in any of {len(members)} nets"


def summary_block(results: list[Results]) -> str:
    """A line for each machine, for the front page."""
    baseline = results[0].members("loop")[0].named(BASELINE)
    lines = [
        f"| CPU | mlp_ext, the same loop, over {baseline} | `TrainStep`, over {baseline} | what "
        "is faster than ours |",
        "|---|---|---|---|",
    ]
    for result in results:
        members = result.members("loop")
        loop, step = zip(*front.Panel(members, result.about).ratios(), strict=True)
        threads = members[0].records[0].threads
        lines.append(
            f"| {result.kind} ({machine.host(result.about)}, {threads} threads) | {span(loop)} | "
            f"{span(step)} | {losing_in_short(members)} |"
        )
    lines += [f"| {kind} | not measured yet | | |" for kind in without_results(results)]
    return "\n".join(lines)


def plots_block(results: list[Results]) -> str:
    lines = []
    for result in results:
        for name, words in result.plots().items():
            path = f"../benchmarks/results/{result.prefix}-{name}.png"
            lines += [f"![{result.kind}: {words}]({path})", ""]
    return "\n".join(lines[:-1])


def demo_block(path: Path) -> str:
    """The table of `make demo`, from the JSON that it writes."""
    report = json.loads(path.read_text())
    about, settings = report["machine"], report["settings"]
    seconds = {c["name"]: statistics.median(c["seconds"]) for c in report["competitors"]}
    over = list(report["speed_up_over"])
    names = [re.sub(r"^.*?, Adam", "Adam", name) for name in over]
    lines = [
        f"{settings['train_digits']} digits, batch {settings['batch_size']}, medians of "
        f"{settings['epochs']} epochs: {about['cpu']}, {about['isa']}, {about['threads']} threads, "
        f"torch {about['torch']}.",
        "",
        "| | seconds an epoch | "
        + " | ".join(f"over {name}" for name in names)
        + " | test accuracy | final loss |",
        "|---" * (len(over) + 4) + "|",
    ]
    for c in report["competitors"]:
        ratios = [f"{seconds[base] / seconds[c['name']]:.2f}x" for base in over]
        cells = [c["name"], f"{seconds[c['name']]:.3f}", *ratios]
        cells += [f"{c['test_accuracy']:.1%}", f"{c['losses'][-1]:.5f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def blocks(results: list[Results], demo: Path | None) -> dict[str, str]:
    made = {suite: suite_block(results, suite) for suite in SUITES}
    made |= {"summary": summary_block(results), "plots": plots_block(results)}
    return made | ({"demo": demo_block(demo)} if demo else {})


def rewritten(text: str, made: dict[str, str]) -> str:
    """`text` with its blocks made anew; ValueError for a marker alone, twice, or of no block."""
    marker = re.compile(r"<!-- benchmarks:(\w+):(begin|end) -->")
    found = [match.groups() for match in marker.finditer(text)]
    names = [name for name, place in found if place == "begin"]
    if found != [(name, place) for name in names for place in ("begin", "end")]:
        raise ValueError(f"the markers benchmarks:...: do not come in pairs: {found}")
    if bad := [name for name in names if name not in made or names.count(name) > 1]:
        raise ValueError(f"benchmarks:{bad[0]}: is there twice, or nothing of that name is made")
    for name in names:
        begin, end = markers(name)
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{made[name]}\n{end}{rest.partition(end)[2]}"
    return text


def read(paths: list[Path]) -> list[Results]:
    """In the order of KINDS; of one kind only the newest, by date and then by name."""
    newest = {}
    for result in sorted(
        (Results(path, *read_csv(path)) for path in paths),
        key=lambda result: (result.about["date"], result.path.name),
    ):
        newest[result.kind] = result
    if not newest:
        raise ValueError("no results")
    order = {kind: i for i, kind in enumerate(KINDS)}
    return sorted(newest.values(), key=lambda result: order.get(result.kind, len(order)))


def written(results: list[Results], demo: Path | None, root: Path = ROOT) -> dict[Path, str]:
    """Every text file that the results determine, under `root`, with its new contents."""
    made, files = blocks(results, demo), {}
    for name in DOCUMENTS:
        files[root / name] = rewritten((root / name).read_text(), made)
    panels = [front.Panel(result.members("loop"), result.about) for result in results]
    for theme in front.THEMES:
        files[root / PICTURE.format(theme)] = front.svg(panels, theme)
    return files


def newest_demo() -> Path | None:
    return max(RESULTS.glob("*-demo.json"), key=lambda path: path.name, default=None)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("csv", type=Path, nargs="*", help="written by python -m benchmarks --full")
    parser.add_argument("--root", type=Path, default=ROOT, help="default: %(default)s")
    parser.add_argument("--no-plots", action="store_true", help="leave the PNGs as they are")
    options = parser.parse_args(arguments)
    try:
        results = read(options.csv or sorted(RESULTS.glob("*-full.csv")))
        files = written(results, newest_demo(), options.root)
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(path)
    for result in results:
        if warning := noise(result.records):
            print(f"{result.path}: {warning}", file=sys.stderr)
        if not options.no_plots:
            from . import plots

            prefix = result.prefix + "-"
            folder = result.path.parent
            for path in plots.draw_all(
                folder, result.records, result.about, result.ceilings, prefix
            ):
                print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
