"""python -m benchmarks.gpu: whether the CUDA kernels are right and fast, in a number of minutes.

It needs one NVIDIA GPU (compute capability 8.0), a CUDA build of torch and nvcc, and mlp_ext's
checkout. It builds the extension in place for that GPU alone with all cores, runs every kernel
once (smoke), compares a grid of shapes with float64, each case twice (correctness), runs
compute-sanitizer where there is one (sanitizer), and times ours against PyTorch, torch.compile and
cuBLASLt, what is most worth knowing first, until the minutes are over (timings).

Into the folder OUT go results.jsonl, a line for everything that is found, as it is found;
table.txt, the same in words, figures beside what was predicted of them, written after each phase;
and the logs. A run that is cut off has lost nothing that it had found.

Exit code: 0, all is right; 1, something of ours is wrong; 2, there was nothing to run on.
"""

import argparse
import signal
import sys
import time
from pathlib import Path

from . import build, phases, table
from .results import Results, failures

PARTS = ("rates", "adam", "steps", "layers", "stacks", "losses", "tiles", "clip")  # of the timings
RESERVE = 8.0  # seconds, to write and to print


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = (*phases.SHARES, *PARTS)
    parser.add_argument("--minutes", type=float, default=9.0, help="for all (default: %(default)g)")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), metavar="DIR")
    listed = ", ".join(names)
    parser.add_argument("--only", nargs="+", default=[], choices=names, metavar="PART", help=listed)
    parser.add_argument("--no-build", action="store_true", help="the extension is as it should be")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, no build")
    parsed = parser.parse_args(arguments)
    if parsed.minutes <= 0:
        parser.error(f"--minutes is a positive number, got {parsed.minutes:g}")
    return parsed


def _chosen(only: list[str]) -> tuple[list[str], list[str]]:
    """(phases, parts of the timings), in their order. What is chosen runs on a build that is up to
    date."""
    parts = [part for part in PARTS if part in only]
    wanted = {*only, "build", *(["timings"] if parts else [])} if only else phases.SHARES
    return [name for name in phases.SHARES if name in wanted], parts


class Stopped(BaseException):
    """By a signal."""


def _stop(number, frame):
    raise Stopped(signal.Signals(number).name)


def main(arguments: list[str] | None = None) -> int:
    start = time.monotonic()
    options = parse_arguments(arguments)
    chosen, parts = _chosen(options.only)
    about = build.machine()
    if about["gpu"] is None and not options.dry_run:
        said = f"torch {about['torch']} (CUDA {about.get('torch_cuda')}) sees no NVIDIA GPU"
        reason = said if about["torch"] else "there is no torch here"
        print(f"Nothing was run: {reason}", file=sys.stderr)
        return 2
    folder = options.out.absolute()
    results = Results(folder)
    for old in (results.path, folder / "log.txt", *folder.glob("*.log")):
        old.unlink(missing_ok=True)
    results.add("machine", **about, dry_run=options.dry_run)
    deadline = start + 60 * options.minutes - RESERVE
    run = phases.Run(results, folder, about, deadline, options.dry_run, parts, options.no_build)

    def write() -> None:
        (folder / "table.txt").write_text(table.whole(results))

    handlers = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        phases.run_all(run, chosen, write, lambda text: print(text, flush=True))
    except phases.NothingToRunOn as reason:
        print(f"Nothing was run: {reason}", file=sys.stderr)
        return 2
    except Stopped as signal_name:
        run.program("the run", "cut off", text=str(signal_name))
        return 1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        write()
    print(table.summary(results))
    print(f"{time.monotonic() - start:.0f} s; everything is in {folder}")
    return int(bool(failures(results)))


if __name__ == "__main__":
    raise SystemExit(main())
