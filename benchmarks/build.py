"""python -m benchmarks.build: what it costs to compile the extension from nothing.

In units, so that machines can be compared: one unit is the CPU time of a file that only includes
torch/extension.h. It is measured twice, alone and with a copy on every core, as in the build: two
threads of one core, which a virtual machine calls two cores, slow each other by half.
Compiles a copy of the tree in a temporary folder; what is built here stays as it is.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from torch.utils import cpp_extension

from .compiler import ROOT, find_compiler

MOST_UNITS, MOST_UNITS_OF_A_FILE = 9, 1.2


@dataclass
class Cost:
    cpu: float
    wall: float


def cost_of(work) -> Cost:
    """CPU seconds (of child processes) and seconds of work()."""

    def cpu():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before, start = cpu(), time.perf_counter()
    work()
    return Cost(cpu() - before, time.perf_counter() - start)


def unit(folder: Path, copies: int) -> float:
    """CPU seconds of one of `copies` compilations at a time."""
    source = folder / "unit.cpp"
    source.write_text("#include <torch/extension.h>\n")
    includes = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    flags = ["-std=c++20", "-O3", "-fPIC", *(f"-I{path}" for path in includes)]

    def compile_them():
        running = [
            subprocess.Popen([*find_compiler(), *flags, "-c", source, "-o", folder / f"{i}.o"])
            for i in range(copies)
        ]
        if any(process.wait() for process in running):
            raise SystemExit("the unit does not compile")

    return cost_of(compile_them).cpu / copies


def build(folder: Path) -> tuple[Cost, dict[str, float]]:
    """What the whole build costs, and the seconds of each file (slower than alone)."""
    for name in ("csrc", "mlp_ext"):
        without = shutil.ignore_patterns("*.so", "__pycache__", "_build_info.py")
        shutil.copytree(ROOT / name, folder / name, ignore=without)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)

    def run():
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        environment = {**os.environ, "MLP_EXT_CUDA": "0"}
        subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)

    cost, files = cost_of(run), {}
    for log in folder.glob("build/temp*/.ninja_log"):
        for line in log.read_text().splitlines()[1:]:
            start, end, _, output, _ = line.split("\t")
            files[Path(output).stem] = (int(end) - int(start)) / 1000
    return cost, files


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.build", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    options = parser.parse_args(arguments)
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        alone, together = unit(folder, 1), unit(folder, cores)
        cost, files = build(folder / "tree")
    slowest = sorted(files, key=files.get, reverse=True)[:5]
    figures = {
        "cores": cores,
        "unit_s": alone,
        "unit_with_all_cores_busy_s": together,
        "build_cpu_s": cost.cpu,
        "build_s": cost.wall,
        "units": cost.cpu / alone,
        "units_with_all_cores_busy": cost.cpu / together,
        "slowest_files_s": {name: files[name] for name in slowest},
    }
    print(f"unit            {alone:6.1f} CPU s, {together:.1f} with all {cores} cores busy")
    print(f"whole build     {cost.cpu:6.1f} CPU s, {cost.wall:.0f} s from nothing")
    print(
        f"in units        {figures['units']:6.1f} (at most {MOST_UNITS}), "
        f"{figures['units_with_all_cores_busy']:.1f} of those with all cores busy"
    )
    for name in slowest:
        part = files[name] / together
        print(f"{name:20} {files[name]:6.1f} s {part:5.2f} units (at most {MOST_UNITS_OF_A_FILE})")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
