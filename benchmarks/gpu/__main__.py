"""python -m benchmarks.gpu: whether the CUDA kernels are right and fast, and what the GPU can do.

smoke, under four minutes: the machine, its ceilings, each op against float64, first questions.
full, under ten: all of that, the tests of tests/cuda, a grid of shapes, compute-sanitizer, and
times against PyTorch, torch.compile and cuBLASLt's epilogues, beside what was predicted of each.

What was left out for want of time: --only PART --seconds NUMBER.

Exit code: 0, all is right; 1, something of ours is wrong or failed; 2, nothing could be run.
"""

import argparse
import sys
from pathlib import Path

try:
    from rich.console import Console

    from . import device
    from .budget import Budget
    from .report import print_all, write_json, write_table
    from .stages import PARTS, SECONDS, run_stage
except ImportError as missing:
    if __name__ != "__main__":
        raise
    print(f"Nothing was run: {missing} (needed: mlp_ext, rich, numpy)", file=sys.stderr)
    raise SystemExit(2) from None


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--stage", choices=PARTS, default="smoke", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures into FILE")
    parser.add_argument(
        "--table", type=Path, metavar="FILE", help="write what is printed into FILE"
    )
    parser.add_argument("--seconds", type=float, help=f"the stage's time (default: {SECONDS})")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="PART", help="run these parts only"
    )
    parsed = parser.parse_args(arguments)
    unknown = set(parsed.only) - set(PARTS[parsed.stage])
    if unknown:
        parser.error(
            f"{parsed.stage} has no part {', '.join(sorted(unknown))}; "
            f"expected {', '.join(PARTS[parsed.stage])}"
        )
    if parsed.seconds is not None and parsed.seconds <= 0:
        parser.error(f"--seconds is a positive number, got {parsed.seconds:g}")
    return parsed


def main(arguments: list[str] | None = None, make_device=None) -> int:
    """`make_device`: what makes the device, for tests; otherwise the GPU, which must be there."""
    options = parse_arguments(arguments)
    if make_device is None:
        if reason := device.missing():
            print(f"Nothing was run: {reason}", file=sys.stderr)
            return 2
        make_device = device.Cuda
    console = Console()
    budget = Budget(options.seconds or SECONDS[options.stage])
    findings = run_stage(
        options.stage,
        make_device(),
        budget,
        options.only,
        tell=lambda text: console.print(text, style="dim", highlight=False),
    )
    ending = budget.summary()
    print_all(console, findings, ending)
    if options.json:
        write_json(options.json, findings)
    if options.table:
        write_table(options.table, findings, ending)
    return int(findings.failed)


if __name__ == "__main__":
    raise SystemExit(main())
