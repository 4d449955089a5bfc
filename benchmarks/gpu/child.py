"""Runs a program until it ends, its time is over, or nothing comes from it any more."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINES = 30  # of the output that are kept


@dataclass(frozen=True)
class Ending:
    """code: the exit status, or None where the program was stopped, and `why` says so."""

    code: int | None
    why: str
    seconds: float
    text: str  # the end of what it printed


def module(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"benchmarks.gpu.{name}", *map(str, arguments)]


class Child:
    """A program that runs; `log` gets what it prints."""

    def __init__(self, command: list[str], log: Path, environment: dict | None = None) -> None:
        self.log, self.start = log, time.monotonic()
        self._file = log.open("ab")
        self._offset = self._file.tell()
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def stop(self) -> None:
        """With whatever it has started. A process that hangs in the driver ends late, or never."""
        for number, patience in ((signal.SIGTERM, 1.0), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                if self._process.poll() is None:
                    os.killpg(self._process.pid, number)
                    self._process.wait(patience)

    def wait(self, seconds: float, watched: Path | None = None, stall: float = 0) -> Ending:
        """Stops it after so many seconds from its start, or when `watched`, a file, has not
        changed for `stall` seconds; and if this process itself is interrupted."""
        why, size, since = "", -1, time.monotonic()
        try:
            while self._process.poll() is None and not why:
                now = time.monotonic()
                if watched is not None:
                    new = watched.stat().st_size if watched.exists() else 0
                    if new != size:
                        size, since = new, now
                    elif now - since > stall:
                        why = f"stopped: nothing new for {stall:.0f} s"
                if now - self.start > seconds:
                    why = f"cut off after {seconds:.0f} s"
                time.sleep(0.05)
        finally:
            self.stop()
            self._file.close()
        code = None if why else self._process.returncode
        if code is not None and code != 0:
            why = f"signal {-code}" if code < 0 else f"exit status {code}"
        with self.log.open("rb") as file:
            file.seek(self._offset)
            printed = file.read().decode(errors="replace").strip().splitlines()
        text = "\n".join(printed[-LINES:])
        return Ending(code, why, time.monotonic() - self.start, text)
