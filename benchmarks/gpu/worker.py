"""python -m benchmarks.gpu.worker PHASE: works through the items of a phase, in a process that may
crash or be stopped at any time. Started again it goes on behind the item that was running."""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .results import Results

LOST, NOTHING = 3, 4  # exit codes: the device answers no more; there is nothing to run on


@dataclass(frozen=True)
class Item:
    """`run(device)` yields lines of results, each with its kind. seconds: about what it takes."""

    name: str
    run: Callable[..., Iterator[dict]]
    seconds: float = 1.0


def work(
    phase: str, items: Iterable[Item], device, results: Results, until: float, clock=time.time
) -> int:
    begun = {line["item"] for line in results.read("begin", phase=phase)}
    for item in items:
        if item.name in begun:
            continue
        if clock() + item.seconds > until:
            results.add("left_out", phase=phase, item=item.name)
            continue
        begun.add(item.name)
        results.add("begin", phase=phase, item=item.name)
        before, error = clock(), ""
        try:
            for line in item.run(device):
                results.add(phase=phase, **line)
            device.synchronize()  # kernels report late
        except Exception as found:  # the others still run
            error = f"{type(found).__name__}: {str(found).strip().partition(chr(10))[0]}"
        results.add("end", phase=phase, item=item.name, error=error, seconds=clock() - before)
        if error and device.is_lost():
            return LOST
    return 0


def items_of(phase: str, device, parts: list[str]) -> Iterable[Item]:
    from . import correctness, timings

    if phase == "timings":
        return timings.items(device, parts)
    return (correctness.smoke if phase == "smoke" else correctness.grid)(device.tiny)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.worker")
    parser.add_argument("phase")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--until", type=float, required=True, help="of time.time()")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--parts", nargs="*", default=[])
    options = parser.parse_args(arguments)
    from . import device  # mlp_ext too, which may not load

    if not options.dry_run and (reason := device.missing()):
        print(reason)
        return NOTHING
    chosen = device.Cpu() if options.dry_run else device.Cuda()
    items = items_of(options.phase, chosen, options.parts)
    return work(options.phase, items, chosen, Results(options.out), options.until)


if __name__ == "__main__":
    raise SystemExit(main())
