"""What results.jsonl says, in words: what is wrong, which paths never win, figures beside what was
predicted of them, and where ours is slower."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .predictions import PREDICTIONS
from .results import Results, failures

MOST = 11_000  # characters that are printed: what some tools keep of a program's output
WRONG, SLOWER = 25, 30  # lines of these


@dataclass(frozen=True)
class Figure:
    case: str
    measure: str
    value: float


def cases(results: Results) -> dict[str, list[dict]]:
    """The times of each case; of one that was timed twice, the later ones."""
    found: dict[str, dict[str, dict]] = {}
    for line in results.read("time"):
        found.setdefault(line["case"], {})[line["competitor"]] = line
    return {case: list(lines.values()) for case, lines in found.items()}


def figures(results: Results) -> list[Figure]:
    """Those that were measured, then ours against each rival of its case, and its rates."""
    lines = results.read("figure")
    made = [Figure(line["case"], line["measure"], float(line["value"])) for line in lines]
    for case, times in cases(results).items():
        ours = next((t for t in times if t["role"] == "ours" and t["us"]), None)
        if ours is None:
            continue
        made.append(Figure(case, "us", ours["us"]))
        for rival in times:
            if rival["role"] in ("baseline", "peer") and rival["us"]:
                ratio = rival["us"] / ours["us"]
                made.append(Figure(case, f"x {rival['competitor']}", ratio))
        if ours["flops"]:
            made.append(Figure(case, "TFLOP/s", ours["flops"] / ours["us"] / 1e6))
        if ours["bytes"]:
            made.append(Figure(case, "GB/s", ours["bytes"] / ours["us"] / 1e3))
    known = {(f.case, f.measure): f.value for f in made}
    rate, best = known.get(("mma.sync TF32", "TFLOP/s")), known.get(("cuBLAS TF32 4096", "TFLOP/s"))
    if rate and best:
        made.append(Figure("mma.sync TF32", "% of cuBLAS TF32", 100 * rate / best))
    if copy := known.get(("copy", "GB/s")):
        of_copy = [f for f in made if f.measure == "GB/s" and f.case != "copy"]
        made += [Figure(f.case, "% of copy", 100 * f.value / copy) for f in of_copy]
    return made


def paths(results: Results) -> Iterator[tuple[str, int, int, float, str]]:
    """(path, cases that it wins, cases, how it stands in its best, that case). It is measured
    against PyTorch's and the other paths; 2 % behind is won, as a tie."""
    found: dict[str, list[tuple[float, str]]] = {}
    for case, times in cases(results).items():
        for mine in times:
            rivals = [
                t["us"]
                for t in times
                if t["us"] and t is not mine and (t["path"] or t["role"] in ("baseline", "peer"))
            ]
            if mine["path"] and mine["us"] and rivals:
                ratio = min(rivals) / mine["us"]
                found.setdefault(mine["path"], []).append((ratio, case))
    for path, ratios in found.items():
        yield path, sum(ratio >= 0.98 for ratio, _ in ratios), len(ratios), *max(ratios)


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _columns(rows: Iterable[tuple]) -> list[str]:
    rows = [tuple(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _beside_predictions(results: Results) -> list[str]:
    measured = {(f.case, f.measure): f.value for f in figures(results)}
    rows = [("case", "measure", "figure", "predicted", "verdict", "the prediction is")]
    for p in PREDICTIONS:
        value = measured.get((p.case, p.measure))
        said = ("", "not measured") if value is None else (_number(value), p.verdict(value))
        rows.append((p.case, p.measure, said[0], p.in_words, said[1], f"{p.source} {p.why}"))
    return ["Figures beside what was predicted of them:", *_columns(rows), ""]


def _machine(results: Results) -> list[str]:
    lines = results.read("machine")
    about = {k: v for line in lines for k, v in line.items() if k != "kind"}
    dry = "A dry run on the CPU: no figure here is a measurement." if about.get("dry_run") else ""
    return [", ".join(f"{name} {value}" for name, value in about.items()), dry]


def _outcome(results: Results) -> list[str]:
    lines = []
    for line in results.read("program"):
        seconds = f" ({line['seconds']:.0f} s)" if "seconds" in line else ""
        lines.append(f"{line['name']}: {line['state']}{seconds} {line['text'][:300]}".rstrip())
    checks = results.read("check")
    passed, same = (sum(check[key] for check in checks) for key in ("passed", "same_bits"))
    lines.append(
        f"Correctness: {passed} of {len(checks)} within twice PyTorch's error of float64 and the "
        f"same bits twice ({same} the same bits)"
    )
    wrong = failures(results)
    if wrong:
        lines += [f"WRONG, the first of {len(wrong)}: {wrong[0]}"]
        lines += [f"  {text.splitlines()[0][:240]}" for text in wrong[1:WRONG]]
    left = list(dict.fromkeys(line["item"] for line in results.read("left_out")))
    if left:
        lines.append(f"Left out for want of time ({len(left)}): {', '.join(left)[:600]}")
    return [*lines, ""]


def _paths(results: Results) -> list[str]:
    rows = sorted(paths(results), key=lambda row: (row[1] > 0, row[0]))
    if not rows:
        return []
    never = [row[0] for row in rows if not row[1]]
    head = f"Paths of ours that never win: {', '.join(never) or 'none'}"
    text = [(f"  {p}", f"wins {w} of {n}", f"best {r:.2f} x", c) for p, w, n, r, c in rows]
    return [head, *_columns(text), ""]


def _slower(results: Results) -> list[str]:
    rows = sorted(
        (figure.value, figure)
        for figure in figures(results)
        if figure.measure.startswith("x ") and figure.value < 1 and figure.case != "float32 error"
    )
    if not rows:
        return []
    text = [(f"  {value:.2f} {f.measure}", f.case) for value, f in rows[:SLOWER]]
    return [f"Where ours is slower ({len(rows)}), the worst first:", *_columns(text), ""]


def _everything(results: Results) -> list[str]:
    rows = [(f.case, f.measure, _number(f.value)) for f in figures(results)]
    return ["All figures:", *_columns(rows)] if rows else []


def whole(results: Results) -> str:
    parts = (_machine, _outcome, _paths, _beside_predictions, _slower, _everything)
    return "\n".join(line for part in parts for line in part(results)) + "\n"


def summary(results: Results) -> str:
    """The first of it, as much as fits."""
    lines = [line for part in (_machine, _outcome, _paths, _slower) for line in part(results)]
    lines += [line for line in _beside_predictions(results) if "not measured" not in line]
    text = "\n".join(lines)
    return (
        text if len(text) <= MOST else text[:MOST].rpartition("\n")[0] + "\n(and more: table.txt)"
    )
