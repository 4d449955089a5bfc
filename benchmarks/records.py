"""Results as flat records, and as CSV: what tables, plots and the README are made from.

A CSV has a row for each competitor of each case. Its last columns are the same in every row: the
machine (machine.py) and its ceilings (ceilings.py), as `ceiling_<name>`.
"""

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .ceilings import UNITS
from .harness import BASELINE, OURS, OWN, Result

NOISY = 10  # per cent; 1 to 3 is usual on a quiet machine


@dataclass
class Record:
    """Times are None where `note` says why there are none. `speedup` is the baseline's median over
    this one; `rate` and `percent` are by the case's ceiling."""

    suite: str
    case: str
    competitor: str
    role: str
    threads: int
    median_us: float | None
    q1_us: float | None
    q3_us: float | None
    speedup: float | None
    rate: float | None
    unit: str
    percent: float | None
    flops: float
    bytes: float
    note: str

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles, in per cent of the median."""
        return 50 * (self.q3_us - self.q1_us) / self.median_us


FIELDS = tuple(field.name for field in fields(Record))


@dataclass
class Group:
    """The records of one case; `speedup` is of ours."""

    records: list[Record]

    @property
    def name(self) -> str:
        return self.records[0].case

    def named(self, role: str) -> str:
        """The competitor of a role, measured or not."""
        return next(r.competitor for r in self.records if r.role == role)

    def of(self, role: str) -> Record | None:
        """The record of a role, if it was measured."""
        return next((r for r in self.records if r.role == role and r.median_us), None)

    @property
    def speedup(self) -> float | None:
        ours = self.of(OURS)
        return ours.speedup if ours else None

    def losses(self, role: str = OURS) -> list[tuple[Record, float]]:
        """The competitors that are faster than ours (of that role), with their time over ours,
        below 1."""
        ours = self.of(role)
        if ours is None:
            return []
        rivals = [r for r in self.records if r.role not in (OURS, OWN) and r.median_us]
        ratios = [(rival, rival.median_us / ours.median_us) for rival in rivals]
        return [(rival, ratio) for rival, ratio in ratios if ratio < 1]


def groups(records: Iterable[Record], suite: str | None = None) -> list[Group]:
    by_case: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if suite in (None, record.suite):
            by_case.setdefault((record.suite, record.case), []).append(record)
    return [Group(members) for members in by_case.values()]


def noise(records: list[Record]) -> str:
    """A warning if other programs were running: two threads that wait for each other then take
    milliseconds in place of microseconds, and the figures are worthless. "" if all is well."""
    spreads = [record.spread for record in records if record.median_us]
    noisy = sum(spread > NOISY for spread in spreads)
    if noisy <= len(spreads) / 10:
        return ""
    return (
        f"The machine was busy: in {noisy} of {len(spreads)} timings the quartiles are more than "
        f"{NOISY} % from the median. Do not use these figures."
    )


def records_of(result: Result, ceilings: dict[str, float]) -> list[Record]:
    case, records = result.case, []
    unit = UNITS.get(case.ceiling, "")
    work = case.flops if unit == "GFLOP/s" else case.bytes
    baseline = result.timings.get(case.named(BASELINE))
    for name, competitor in case.competitors.items():
        timing = result.timings.get(name)
        rate = work / timing.median / 1e9 if timing and unit else None
        limit = ceilings.get(case.ceiling)
        low, high = timing.quartiles if timing else (None, None)
        records.append(
            Record(
                case.suite,
                case.name,
                name,
                competitor.role,
                result.threads,
                *(t * 1e6 if t else None for t in (timing and timing.median, low, high)),
                baseline.median / timing.median if baseline and timing else None,
                rate,
                unit,
                100 * rate / limit if rate and limit else None,
                case.flops,
                case.bytes,
                result.notes.get(name, ""),
            )
        )
    return records


def _text(value) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def write_csv(
    path: Path, records: list[Record], machine: dict[str, str], ceilings: dict[str, float]
) -> None:
    constant = machine | {f"ceiling_{name}": _text(ceilings.get(name)) for name in UNITS}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*FIELDS, *constant])
        for record in records:
            writer.writerow([*map(_text, asdict(record).values()), *constant.values()])


def _parsed(row: dict[str, str]) -> Record:
    kinds = {"threads": int, "flops": float, "bytes": float}
    optional = ("median_us", "q1_us", "q3_us", "speedup", "rate", "percent")
    values: dict = {name: row[name] for name in FIELDS}
    for name, kind in kinds.items():
        values[name] = kind(row[name])
    for name in optional:
        values[name] = float(row[name]) if row[name] else None
    return Record(**values)


def read_csv(path: Path) -> tuple[list[Record], dict[str, str], dict[str, float]]:
    """(records, machine, ceilings); ValueError for a file that is no such CSV, or an empty one."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    missing = set(FIELDS) - set(rows[0] if rows else ())
    if missing:
        raise ValueError(f"{path} has no rows, or lacks the columns {', '.join(sorted(missing))}")
    machine = {key: value for key, value in rows[0].items() if key not in FIELDS}
    ceilings = {}
    for name in UNITS:
        if value := machine.pop(f"ceiling_{name}", ""):
            ceilings[name] = float(value)
    return [_parsed(row) for row in rows], machine, ceilings
