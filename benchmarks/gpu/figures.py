"""Figures, and each beside what was predicted of it."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from ..harness import OURS, OWN
from ..records import Group, Record, groups
from .predictions import PREDICTIONS, Prediction


@dataclass(frozen=True)
class Figure:
    """A number, or None with a `note` that says why there is none."""

    case: str
    measure: str
    value: float | None
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A figure with one of its predictions; either may be missing, not both."""

    figure: Figure | None
    prediction: Prediction | None
    gpu: str = ""

    @property
    def verdict(self) -> str:
        if self.figure is None or self.figure.value is None:
            return "not measured"
        return self.prediction.verdict(self.figure.value, self.gpu) if self.prediction else ""

    @property
    def name(self) -> tuple[str, str]:
        either = self.figure or self.prediction
        assert either is not None
        return either.case, either.measure


def joined(
    figures: Iterable[Figure], gpu: str, predictions: Iterable[Prediction] = PREDICTIONS
) -> list[Row]:
    """Every figure with each of its predictions, then the predictions without a figure."""
    rows, known = [], list(predictions)
    measured = set()
    for figure in figures:
        measured.add((figure.case, figure.measure))
        mine = [p for p in known if (p.case, p.measure) == (figure.case, figure.measure)]
        rows += [Row(figure, prediction, gpu) for prediction in mine or [None]]
    rows += [Row(None, p, gpu) for p in known if (p.case, p.measure) not in measured]
    return rows


def as_json(rows: Iterable[Row]) -> list[dict]:
    made = []
    for row in rows:
        case, measure = row.name
        value, note = (row.figure.value, row.figure.note) if row.figure else (None, "")
        prediction = asdict(row.prediction) if row.prediction else None
        figure = {"case": case, "measure": measure, "value": value, "note": note}
        made.append(figure | {"prediction": prediction, "verdict": row.verdict})
    return made


def of_records(records: Iterable[Record], copy_gbs: float | None) -> list[Figure]:
    """Ours against each rival of its case, and its rates."""
    return [figure for group in groups(records) for figure in _of_group(group, copy_gbs)]


def _of_group(group: Group, copy_gbs: float | None) -> list[Figure]:
    ours = group.of(OURS)
    made = []
    for rival in group.records:
        if rival.role in (OURS, OWN):
            continue
        ratio, note = None, rival.note or next(r.note for r in group.records if r.role == OURS)
        if ours and rival.median_us:
            ratio = rival.median_us / ours.median_us
        made.append(Figure(group.name, f"x {rival.competitor}", ratio, note))
    if ours is None:
        return made
    made.append(Figure(group.name, "us", ours.median_us))
    if ours.flops:
        made.append(Figure(group.name, "TFLOP/s", ours.flops / ours.median_us / 1e6))
    if ours.bytes and copy_gbs:
        percent = 100 * ours.bytes / ours.median_us / 1e3 / copy_gbs
        made.append(Figure(group.name, "% of copy", percent))
    return made
