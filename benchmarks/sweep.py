"""python -m benchmarks.sweep: which block sizes KC, MC, NC suit this machine's caches.

Compiles csrc/cpu with the flags of setup.py, and times float32 products on one thread through the
kernel table: all choices interleaved, with the ones of cpu/blocks.cpp for this host among them. MC
has to be a multiple of the tile's rows, which are 14 (avx512), 6 (avx2, neon) and 2 (scalar).
"""

import argparse
import csv
import ctypes
import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.table import Table

import mlp_ext

from . import machine
from .compiler import BUILD, ROOT, NoCompiler, compile_to, find_compiler
from .harness import Call, Case, Competitor, Effort, Result, geometric_mean, measure

CSRC = ROOT / "csrc"
DRIVER = ROOT / "benchmarks" / "sweep_gemm.cpp"
FORMS = ("forward", "dX", "dW")
AS_BUILT = "as built"

Blocks = tuple[int, int, int] | None  # KC, MC, NC; None for those of this host


def flags() -> list[str]:
    """Those of the extension itself, for a library that ctypes loads."""
    spec = importlib.util.spec_from_file_location("mlp_ext_setup", ROOT / "setup.py")
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    return ["-fPIC", *setup.CXX_FLAGS, f"-I{CSRC}"]


def title(blocks: Blocks) -> str:
    return AS_BUILT if blocks is None else "{} {} {}".format(*blocks)


def folder_of_this_source() -> Path:
    """Where compiled parts are kept, by the contents of all that goes into them."""
    digest = hashlib.sha256(repr((flags(), find_compiler())).encode())
    for path in sorted([*CSRC.rglob("cpu/**/*"), *CSRC.rglob("common/*"), DRIVER]):
        if path.is_file():
            digest.update(path.read_bytes())
    return BUILD / "sweep" / digest.hexdigest()[:12]


def compile_library(jobs: int) -> ctypes.CDLL:
    folder = folder_of_this_source()
    sources = [DRIVER, *sorted(CSRC.glob("cpu/**/*.cpp"))]

    def compiled(source: Path) -> Path:
        output = folder / f"{source.stem}.o"
        return output if output.exists() else compile_to(output, *flags(), "-c", source)

    with ThreadPoolExecutor(jobs) as pool:
        objects = list(pool.map(compiled, sources))
    library = ctypes.CDLL(str(compile_to(folder / "sweep.so", "-shared", *objects)))
    library.sweep_problem.restype = ctypes.c_void_p
    library.sweep_problem.argtypes = [ctypes.c_char_p, ctypes.c_int, *[ctypes.c_int64] * 6]
    library.sweep_run.argtypes = [ctypes.c_void_p]
    return library


def product_of(
    library, blocks: Blocks, isa: str, form: str, shape: tuple[int, int, int]
) -> Callable[[], Call]:
    """A competitor's `make`. Its arrays stay for the life of the process."""

    def make():
        problem = library.sweep_problem(
            isa.encode(), FORMS.index(form), *shape, *(blocks or (0, 0, 0))
        )
        if not problem:
            raise ValueError(f"this CPU does not run {isa}")
        return lambda: library.sweep_run(problem)

    return make


def cases(
    library, choices: list[Blocks], isa: str, shapes: list[tuple[int, int, int]]
) -> list[Case]:
    return [
        Case(
            "sweep",
            f"{form} {'x'.join(map(str, shape))}",
            {title(b): Competitor(product_of(library, b, isa, form, shape)) for b in choices},
            flops=2.0 * shape[0] * shape[1] * shape[2],
            threads=1,
        )
        for shape, form in product(shapes, FORMS)
    ]


def speedups(results: list[Result], name: str) -> list[float]:
    """Over this host's own sizes, in each case."""
    return [r.timings[AS_BUILT].median / r.timings[name].median for r in results]


def print_table(console: Console, results: list[Result], isa: str) -> None:
    """GFLOP/s, the best choice first."""
    table = Table(title=f"{isa}: GFLOP/s on one thread", caption=f"x: mean over '{AS_BUILT}'")
    table.add_column("KC MC NC")
    for result in results:
        table.add_column(result.case.name, justify="right")
    table.add_column("x", justify="right")
    means = {name: geometric_mean(speedups(results, name)) for name in results[0].timings}
    for name in sorted(means, key=means.__getitem__, reverse=True):
        rates = [r.case.flops / r.timings[name].median / 1e9 for r in results]
        table.add_row(name, *(f"{rate:.1f}" for rate in rates), f"{means[name]:.3f}")
    console.print(table)


def write_csv(path: Path, results: list[Result], isa: str) -> None:
    about = machine.describe() | {"isa": isa}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "blocks", "median_us", "q1_us", "q3_us", "gflops", "x", *about])
        for result in results:
            for name, timing in result.timings.items():
                times = (timing.median, *timing.quartiles)
                rate = result.case.flops / timing.median / 1e9
                ratio = result.timings[AS_BUILT].median / timing.median
                row = [*(f"{t * 1e6:.3f}" for t in times), f"{rate:.2f}", f"{ratio:.4f}"]
                writer.writerow([result.case.name, name, *row, *about.values()])


def shape_of(text: str) -> tuple[int, int, int]:
    numbers = tuple(int(part) for part in text.split("x"))
    if len(numbers) != 3 or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"expected MxNxK, got {text!r}")
    return numbers


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    sources = sorted((CSRC / "cpu" / "targets").glob("*_gemm.cpp"))
    isas = [path.stem.removesuffix("_gemm") for path in sources]
    # avx512_bf16 adds bfloat16 products to avx512; the float32 ones are the same.
    active = mlp_ext.cpu.active_isa().removesuffix("_bf16")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__)
    parser.add_argument("--isa", choices=isas, default=active, help="default: %(default)s")
    for name, values in (("kc", (256, 384, 512)), ("mc", (84, 168, 336)), ("nc", (1024,))):
        parser.add_argument(
            f"--{name}", type=int, nargs="+", default=values, help="default: %(default)s"
        )
    shapes = [(1024, 1024, 1024), (256, 1024, 1024), (64, 512, 784)]
    parser.add_argument("--shapes", type=shape_of, nargs="+", default=shapes, help="MxNxK ...")
    parser.add_argument("--rounds", type=int, default=15, help="default: %(default)s")
    parser.add_argument("--sample-s", type=float, default=0.02, help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at a time")
    parser.add_argument(
        "--csv", type=Path, default=Path("build/sweep.csv"), help="default: %(default)s"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    choices: list[Blocks] = [None, *product(options.kc, options.mc, options.nc)]
    console = Console()
    try:
        library = compile_library(options.jobs)
    except NoCompiler as error:
        print(f"python -m benchmarks.sweep: {error}", file=sys.stderr)
        return 1
    effort = Effort(options.rounds, options.sample_s, budget_s=3600.0)
    results = [
        measure(case, effort) for case in cases(library, choices, options.isa, options.shapes)
    ]
    if notes := {note for result in results for note in result.notes.values()}:
        print(f"python -m benchmarks.sweep: {'; '.join(sorted(notes))}", file=sys.stderr)
        return 1
    print_table(console, results, options.isa)
    write_csv(options.csv, results, options.isa)
    console.print(f"Figures: {options.csv}", highlight=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
