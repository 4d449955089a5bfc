"""How far a compilation is, said where the user sees it.

pip shows nothing of what a build prints, so minutes would pass in silence: the lines go to the
terminal itself where there is one, and to stderr where there is none (`pip install -v` shows it).
"""

import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

SECONDS = 5  # between two lines, where something has happened


def open_output():
    if not sys.stderr.isatty():
        try:
            return open("/dev/tty", "w")  # noqa: SIM115, closed with the process
        except OSError:
            pass
    return sys.stderr


class Progress:
    """Counts objects as they appear: `with progress.watch(objects)` around what compiles them."""

    def __init__(self):
        self.start = time.time()
        self.output, self.objects, self.told, self.kept = open_output(), [], 0, False

    def compiled(self) -> int:
        def is_new(path):
            try:
                # Files are stamped by the kernel's clock, which runs some milliseconds behind.
                return path.stat().st_mtime > self.start - 0.1
            except FileNotFoundError:
                return False

        return sum(map(is_new, self.objects))

    def tell(self) -> None:
        done = self.compiled()
        if done == self.told:
            return
        self.told = done
        # Where objects of an earlier build are kept, only ninja knows how many there are to do.
        count = (
            f"{done} file{'s' * (done > 1)}"
            if self.kept
            else f"{done} of {len(self.objects)} files"
        )
        line_end = "" if self.output is sys.stderr else "\n"  # pip's spinner stands in the line
        seconds = time.time() - self.start
        print(f"{line_end}mlp_ext: compiled {count}, {seconds:.0f} s", file=self.output, flush=True)

    @contextmanager
    def watch(self, objects):
        self.objects = [Path(path) for path in objects]
        self.kept = any(path.exists() for path in self.objects)
        ended = threading.Event()

        def run():
            while not ended.wait(SECONDS):
                self.tell()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.tell()
