"""The README's picture: speed-up by net, a panel for each kind of machine, as SVG.

Written as text, not by a plotting library: a few KB, and the same bytes wherever it is made, so a
test compares the committed files with the results. The background is transparent.
"""

import math
from dataclasses import dataclass
from xml.sax.saxutils import escape

from . import machine
from .harness import BASELINE, OURS, OWN
from .records import Group

WIDTH = 830  # of a README on GitHub, in CSS pixels: texts keep their size
LABELS = 172  # the column of nets
ROW, BAR, TOP, BOTTOM = 44, 14, 84, 62
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
WORDS = {"torch fused Adam": "PyTorch with Adam(fused=True)"}
TICKS = (0.1, 0.3, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)


@dataclass(frozen=True)
class Colours:
    text: str
    faint: str
    grid: str
    ours: str
    own: str


# Blue and orange of Okabe and Ito's palette, told apart with any colour vision.
THEMES = {
    "light": Colours("#1f2328", "#59636e", "#d1d9e0", "#0072b2", "#e69f00"),
    "dark": Colours("#f0f6fc", "#9198a1", "#3d444d", "#56b4e9", "#e69f00"),
}


@dataclass(frozen=True)
class Panel:
    """What one machine measured: the groups of the suite `loop`, and what it is."""

    members: list[Group]
    about: dict[str, str]

    def ratios(self) -> list[tuple[float | None, float | None]]:
        """(mlp_ext in the loop, TrainStep) over the baseline, by net."""
        both = []
        for group in self.members:
            ours, own = group.of(OURS), group.of(OWN)
            both.append((ours and ours.speedup, own and own.speedup))
        return both


def _text(x: float, y: float, words: str, colour: str, size: float = 13, **attributes: str) -> str:
    more = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in attributes.items())
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{size:g}"{more}>'
        f"{escape(words)}</text>"
    )


def _rect(left: float, top: float, width: float, colour: str) -> str:
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{BAR}" fill="{colour}"/>'
    )


def _line(x: float, top: float, bottom: float, colour: str, width: float) -> str:
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}" stroke="{colour}" '
        f'stroke-width="{width:g}"/>'
    )


def _number(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 20 else f"{ratio:.1f}x" if ratio >= 3 else f"{ratio:.2f}x"


def _net(case: str) -> tuple[str, str]:
    """("2-30-20-2", "seed, batch 2") of "seed (2-30-20-2, 2)"."""
    name, _, rest = case.rstrip(")").partition(" (")
    sizes, _, batch = rest.partition(", ")
    return sizes, f"{name}, batch {batch}"


def _panel(panel: Panel, left: float, right: float, span: tuple[float, float], theme) -> list[str]:
    low, high = (math.log(value) for value in span)

    def place(ratio: float) -> float:
        return left + (right - left) * (math.log(ratio) - low) / (high - low)

    bottom, lines = TOP + ROW * len(panel.members), []
    kind = machine.kind(panel.about)
    lines.append(_text(left, TOP - 12, kind, theme.text, 14, font_weight="600"))
    # 1 first: it is always there, and the others keep clear of it.
    shown = [place(1.0)]
    for tick in sorted(TICKS, key=lambda tick: abs(math.log(tick))):
        x = place(tick)
        if span[0] <= tick <= span[1] and (tick == 1 or min(abs(x - s) for s in shown) > 34):
            shown.append(x)
            if tick != 1:
                lines.append(_line(x, TOP, bottom, theme.grid, 1))
            words = f"{tick:g}x"
            lines.append(_text(x, bottom + 17, words, theme.faint, 12, text_anchor="middle"))
    for row, ratios in enumerate(panel.ratios()):
        top = TOP + ROW * row + (ROW - 2 * BAR) / 2
        for i, (ratio, colour) in enumerate(zip(ratios, (theme.ours, theme.own), strict=True)):
            if ratio is None:
                continue
            start, end = sorted((place(1.0), place(ratio)))
            y = top + i * BAR
            lines.append(_rect(start, y, max(end - start, 1), colour))
            lines.append(_text(end + 5, y + 11.5, _number(ratio), theme.text, 12))
    lines.append(_line(place(1.0), TOP, bottom, theme.faint, 1.5))
    return lines


def svg(panels: list[Panel], theme_name: str) -> str:
    """`panels` with the same nets, at least one."""
    theme, rows = THEMES[theme_name], panels[0].members
    ratios = [r for panel in panels for pair in panel.ratios() for r in pair if r]
    span = min(0.8, min(ratios) / 1.25), max(2.0, max(ratios) * 1.05)
    height = TOP + ROW * len(rows) + BOTTOM
    baseline = rows[0].named(BASELINE)
    title = f"One training step: times as fast as {WORDS.get(baseline, baseline)} (log scale)"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" font-family="{FONT}">',
        f"<title>{escape(title)}</title>",
        _text(0, 17, title, theme.text, 15, font_weight="600"),
    ]
    for x, name, colour in (
        (0, "mlp_ext, the same loop", theme.ours),
        (LABELS + 20, "mlp_ext, TrainStep: the step as one call", theme.own),
    ):
        lines.append(_rect(x, 30, BAR, colour))
        lines.append(_text(x + BAR + 6, 42, name, theme.text))
    for row, group in enumerate(rows):
        sizes, name = _net(group.name)
        y = TOP + ROW * row + ROW / 2
        lines.append(_text(0, y - 2, sizes, theme.text, 13.5))
        lines.append(_text(0, y + 14, name, theme.faint, 12))
    gap, room = 24, 44  # between panels; for the number behind the longest bar
    width = (WIDTH - LABELS - gap * (len(panels) - 1)) / len(panels)
    for i, panel in enumerate(panels):
        left = LABELS + i * (width + gap)
        lines += _panel(panel, left, left + width - room, span, theme)
    for i, panel in enumerate(panels):
        threads = panel.members[0].records[0].threads
        words = f"{machine.kind(panel.about)}: {machine.in_words(panel.about, threads)}"
        lines.append(_text(0, height - 8 - 15 * (len(panels) - 1 - i), words, theme.faint, 11))
    return "\n".join([*lines, "</svg>", ""])
