"""PNGs of the records: a roofline, the loops' speed-ups, where linear_relu crosses PyTorch.

8.3 inches wide, so that their texts can be read at the width that a page gives them (830 pixels).

`python -m benchmarks.plots CSV DIR`, or --plots DIR of `python -m benchmarks`.
"""

import argparse
import io
import math
import re
import textwrap
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import matplotlib
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox
from PIL import Image

from . import machine as machine_
from .harness import BASELINE, OURS, OWN
from .records import Group, Record, groups, read_csv

matplotlib.use("Agg")  # draws into files; needs no display
import matplotlib.pyplot as plt  # noqa: E402

# The palette of Okabe and Ito, told apart with any colour vision; ours is the first.
OUR_COLOUR = "#0072B2"
COLOURS = ("#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
GREY = "#555555"
WIDTH = 8.3
TICKS = (0.25, 0.5, 0.7, 1, 1.4, 2, 3, 4, 6, 8, 12, 16)
MARKERS = ("o", "s", "D", "^", "v", "P")


def _finish(figure, path: Path, records: list[Record], machine: dict[str, str]) -> Path:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    words = machine_.in_words(machine, records[0].threads)
    figure.supxlabel(textwrap.fill(words, 110), fontsize=8, color=GREY)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=150)
    plt.close(figure)
    # With a palette it takes a third of the bytes.
    Image.open(drawn).convert("RGB").quantize(96).save(path, optimize=True)
    return path


def _times(value: float, _position=None) -> str:
    return f"{value:g}x"


# ---- roofline


def _label(axes, points: list[tuple[float, float, str]], peak: float) -> None:
    """Writes a text beside each point, in the first of some places where it covers nothing."""
    renderer = axes.figure.canvas.get_renderer()
    axes.figure.canvas.draw()
    taken = [text.get_window_extent(renderer) for text in axes.texts]
    for x, y, _ in points:
        at = axes.transData.transform((x, y))
        taken.append(Bbox([at - 7, at + 7]))
    left, roof = axes.transData.transform((axes.get_xlim()[0], peak))
    taken.append(Bbox([(left, roof - 3), (axes.bbox.x1, roof + 3)]))
    places = [
        (dx, dy, align)
        for distance in (0, 11, 22, 33, 44, 55)
        for dy in sorted({-distance, distance})
        for dx, align in ((7, "left"), (-7, "right"), (0, "center"))
        if distance or align != "center"
    ]
    for x, y, words in points:
        for dx, dy, align in places:
            text = axes.annotate(
                words, (x, y), xytext=(dx, dy), textcoords="offset points", fontsize=8, ha=align,
                va="center", arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": GREY},
            )  # fmt: skip
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer)
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and box.y0 >= axes.bbox.y0
            if inside and not any(box.overlaps(other) for other in taken):
                break
            text.remove()
        else:
            continue
        taken.append(box)


def _roof(axes, points: list[tuple[float, float, str]], peak: float, bandwidth: float) -> None:
    """The points under a peak and, left of where they meet, the memory bandwidth."""
    low, high = min(x for x, _, _ in points) / 4, max(x for x, _, _ in points) * 4
    ridge = peak / bandwidth
    bottom = min(*(y for _, y, _ in points), peak) / 1.6
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom, peak * 1.4))
    xs = sorted([low, high, *([ridge] if low < ridge < high else [])])
    axes.plot(xs, [min(peak, x * bandwidth) for x in xs], color=GREY, linewidth=1.5, zorder=1)
    axes.annotate(
        f"{peak:.0f} GFLOP/s: multiply-adds", (high, peak), xytext=(0, 4), ha="right",
        textcoords="offset points", color=GREY, fontsize=8.5,
    )  # fmt: skip
    axes.yaxis.set_major_locator(MaxNLocator(7) if peak < 10 * bottom else LogLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.scatter([x for x, _, _ in points], [y for _, y, _ in points], color=OUR_COLOUR, zorder=3)
    if low < ridge:
        axes.figure.canvas.draw()
        x = math.sqrt(max(low, bottom / bandwidth) * ridge)
        start, end = axes.transData.transform([(x, x), (2 * x, 2 * x)])
        axes.text(
            x, x * bandwidth, f"{bandwidth:.0f} GB/s: memory\n", color=GREY, fontsize=8.5,
            rotation=math.degrees(math.atan2(end[1] - start[1], end[0] - start[0])),
            rotation_mode="anchor", ha="center", va="center",
        )  # fmt: skip
    axes.set_xlabel("floating-point operations a byte that has to move")
    _label(axes, points, peak)


def roofline(records: list[Record], ceilings: dict[str, float]):
    """Our matrix products and training steps, each under the ceilings of its threads."""
    panels = [
        (suite, title, ceilings[peak], [r for r in records if r.suite == suite])
        for suite, title, peak in (
            ("gemm", "Matrix products, one thread", "fma_1"),
            ("loop", "Training steps, all threads", "fma"),
        )
    ]
    panels = [panel for panel in panels if panel[3]]
    figure, column = plt.subplots(
        len(panels), 1, figsize=(WIDTH, 4.2 * len(panels)), squeeze=False, layout="constrained"
    )
    for axes, (suite, title, peak, chosen) in zip(column[:, 0], panels, strict=True):
        points = []
        for r in chosen:
            rate = r.flops / r.median_us / 1e3
            name = r.case.partition(" (")[0] if suite == "loop" else re.sub(r" ?\w=", " x ", r.case)
            percent = 100 * rate / peak
            words = f"{name.removeprefix(' x ')}: {percent:.{0 if percent >= 1 else 2}f} %"
            points.append((r.flops / r.bytes, rate, words))
        _roof(axes, points, peak, ceilings["stream"])
        axes.set_title(title)
        axes.set_ylabel("GFLOP/s of mlp_ext (and % of the peak)")
    return figure


# ---- the loops


def _lines_of(case: str) -> str:
    """Of "wide (1024-1024-1024-1024, 256)"; long sizes in two lines, to keep out of the next's."""
    name, _, rest = case.rstrip(")").partition(" (")
    sizes, _, batch = rest.partition(", ")
    if len(sizes) > 15:
        parts = sizes.split("-")
        half = len(parts) // 2
        sizes = "-".join(parts[:half]) + "-\n" + "-".join(parts[half:])
    return f"{name}\n{sizes}\nbatch {batch}"


def speedups(members: list[Group]):
    """A group of bars a net, a bar a competitor, over the baseline: log scale, 1 is the line."""
    baseline = next(r.competitor for r in members[0].records if r.role == BASELINE)
    names = [r.competitor for r in members[0].records if r.role != BASELINE]
    names.sort(key=lambda name: name.startswith("mlp_ext"))  # ours last
    figure, axes = plt.subplots(figsize=(WIDTH, 4.8), layout="constrained")
    colours, width = cycle(COLOURS), 0.84 / len(names)
    for i, name in enumerate(names):
        records = [next(r for r in group.records if r.competitor == name) for group in members]
        values = [r.speedup or math.nan for r in records]
        ours = records[0].role in (OURS, OWN)
        colour = OUR_COLOUR if records[0].role == OURS else next(colours)
        places = [group + (i - (len(names) - 1) / 2) * width for group in range(len(members))]
        axes.bar(places, [v - 1 for v in values], width * 0.92, bottom=1, color=colour, label=name)
        for place, value in zip(places, values, strict=True):
            if not math.isnan(value):
                axes.annotate(
                    f"{value:.{2 if value < 10 else 0}f}", (place, value),
                    xytext=(0, 2 if value >= 1 else -2),
                    textcoords="offset points", ha="center", fontsize=7.5, rotation=90,
                    va="bottom" if value >= 1 else "top",
                    fontweight="bold" if ours else "normal",
                )  # fmt: skip
    axes.axhline(1, color=GREY, linewidth=1)
    # Room for the numbers at either end.
    shown = [r.speedup for group in members for r in group.records if r.speedup]
    room = 1.2 * (max(shown) / min(shown)) ** 0.12
    axes.set(
        yscale="log", ylim=(min(shown) / room, max(shown) * room),
        ylabel=f"times as fast as {baseline}",
        title=f"One training step: speed-up over {baseline} (the line at 1)",
    )  # fmt: skip
    axes.set_xticks(range(len(members)), [_lines_of(group.name) for group in members], fontsize=8)
    axes.yaxis.set_major_formatter(FuncFormatter(_times))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", length=0)
    figure.legend(frameon=False, fontsize=8.5, ncols=len(names), loc="outside upper center")
    return figure


# ---- linear_relu


def _grid(members: list[Group]) -> dict[tuple[str, int], dict[int, dict[int, float]]]:
    """(mode, K) -> N -> M -> speed-up."""
    grid: dict = {}
    for group in members:
        found = re.fullmatch(r"(\S+) M=(\d+) N=(\d+) K=(\d+)", group.name)
        if found and group.speedup:
            m, n, k = (int(text) for text in found.groups()[1:])
            grid.setdefault((found[1], k), {}).setdefault(n, {})[m] = group.speedup
    return grid


def crossover(members: list[Group]):
    """A panel for each K (rows) and mode (columns), a line for each N: the ratio to PyTorch over
    M."""
    grid = _grid(members)
    modes = sorted({mode for mode, _ in grid})
    ks = sorted({k for _, k in grid})
    ns = sorted({n for lines in grid.values() for n in lines})
    ms = sorted({m for lines in grid.values() for line in lines.values() for m in line})
    figure, panels = plt.subplots(
        len(ks), len(modes), figsize=(WIDTH, 1.2 + 2 * len(ks)), sharex=True, sharey=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for i, k in enumerate(ks):
        for j, mode in enumerate(modes):
            axes = panels[i][j]
            axes.axhline(1, color=GREY, linewidth=1)
            for n, line in sorted(grid.get((mode, k), {}).items()):
                style = ns.index(n) % len(MARKERS)
                axes.plot(
                    list(line), list(line.values()), marker=MARKERS[style], markersize=4,
                    color=(OUR_COLOUR, *COLOURS)[style], linewidth=1.4, label=f"N = {n}",
                )  # fmt: skip
            if i == 0:
                axes.set_title(mode.replace("+", " + "), fontsize=10)
            if j == 0:
                axes.set_ylabel(f"K = {k}")
            if i + 1 == len(ks):
                axes.set_xlabel("M (batch)")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log", base=2)
            axes.set_xticks(ms, [str(m) for m in ms])
            axes.yaxis.set_major_locator(FixedLocator(TICKS))
            axes.yaxis.set_major_formatter(FuncFormatter(_times))
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, frameon=False, ncols=len(ns), loc="outside upper center",
        title="linear_relu: times as fast as F.relu(F.linear)", title_fontsize=13,
    )  # fmt: skip
    return figure


# ---- all of them


def draw_all(
    folder: Path,
    records: list[Record],
    machine: dict[str, str],
    ceilings: dict[str, float],
    prefix: str = "",
) -> Iterator[Path]:
    """Draws what the records allow; yields the files, whose names begin with `prefix`."""
    ours = [r for r in records if r.role == OURS and r.median_us and r.suite in ("loop", "gemm")]
    if ours and ceilings:
        figure = roofline(ours, ceilings)
        yield _finish(figure, folder / f"{prefix}roofline.png", ours, machine)
    for suite, draw, name in (("loop", speedups, "loop"), ("linear", crossover, "crossover")):
        members = [group for group in groups(records, suite) if group.speedup]
        if members:
            path = folder / f"{prefix}{name}.png"
            yield _finish(draw(members), path, members[0].records, machine)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__)
    parser.add_argument("csv", type=Path, help="written by python -m benchmarks")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    for path in draw_all(options.folder, *read_csv(options.csv)):
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
