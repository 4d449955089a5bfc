"""results.jsonl: everything that a run finds out, a line each, written as it is found.

A line is an object with a `kind`: machine, begin and end (of an item of work), check, figure, time,
program (a phase or another program), left_out. A run that is cut off has lost no line before that.
"""

import json
import math
import os
from pathlib import Path


def _plain(value):
    """JSON has no inf and nan: they become words."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class Results:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "results.jsonl"

    def add(self, kind: str, **values) -> None:
        line = {"kind": kind} | {name: _plain(value) for name, value in values.items()}
        with self.path.open("a") as file:
            # In one write: a process that is killed leaves a whole line or none.
            file.write(json.dumps(line, default=str, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self, *kinds: str, **wanted) -> list[dict]:
        """The lines of these kinds with these values, in order."""
        if not self.path.exists():
            return []
        lines = map(json.loads, self.path.read_text().splitlines())
        return [
            line
            for line in lines
            if line["kind"] in kinds and all(line.get(k) == v for k, v in wanted.items())
        ]

    def unfinished(self, phase: str) -> list[str]:
        """Items that have begun and not ended: what was running when the process died."""
        ended = {line["item"] for line in self.read("end", phase=phase)}
        return [i["item"] for i in self.read("begin", phase=phase) if i["item"] not in ended]


def failures(results: Results) -> list[str]:
    """What is wrong, in the order in which it was found; slow is not wrong."""
    found = []
    for line in results.read("end", "check", "time", "program"):
        kind = line["kind"]
        if kind == "end" and line["error"]:
            found.append(f"{line['phase']}: {line['item']}: {line['error']}")
        elif kind == "check" and not line["passed"]:
            found.append(
                f"{line['name']}: {line['note']} (error {line['error']}, "
                f"PyTorch's {line['torch_error']})"
            )
        elif kind == "time" and line["role"] in ("ours", "own") and line["us"] is None:
            found.append(f"{line['case']}: {line['competitor']}: {line['note']}")
        elif kind == "program" and line["state"] == "FAILED":
            found.append(f"{line['name']} failed: {line['text']}")
    return found
