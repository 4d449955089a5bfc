"""Static gates on the CUDA kernels: `python tests/cuda/gates.py` compiles every csrc/cuda/**/*.cu
and compares registers, stack, spills and instructions with budgets.toml. No GPU, no torch.

Exit status 0 also where the tools are missing: the last line then begins with SKIPPED.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sass
from sass import ARCHS, Kernel

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LOCAL_MEMORY = ["LDL", "STL"]


class BadBudgets(Exception):
    """What is wrong with budgets.toml itself."""


def on(arch: str, value: Any) -> Any:
    """The value for one arch: itself, or its entry in a table by arch."""
    if not isinstance(value, dict):
        return value
    if unknown := set(value) - set(ARCHS) - {"other"}:
        raise BadBudgets(f"no such arch: {', '.join(sorted(unknown))}")
    if arch not in value and "other" not in value:
        raise BadBudgets(f"{value} has neither {arch} nor other")
    return value.get(arch, value.get("other"))


@dataclass(frozen=True)
class Budget:
    """A row of budgets.toml, which explains the fields."""

    name: str
    registers: Any
    stack: Any = 0
    spill: Any = 0
    require: Any = field(default_factory=list)
    forbid: Any = field(default_factory=list)

    def breaches(self, kernel: Kernel) -> Iterable[str]:
        for what in ("registers", "stack", "spill"):
            used, most = getattr(kernel, what), on(kernel.arch, getattr(self, what))
            if used > most:
                unit = "registers" if what == "registers" else f"bytes of {what}"
                yield f"{used} {unit}, and {most} at most are allowed"
        forbidden = list(on(kernel.arch, self.forbid))
        if not on(kernel.arch, self.stack) and not on(kernel.arch, self.spill):
            forbidden += LOCAL_MEMORY
        for pattern in on(kernel.arch, self.require):
            if not any(re.match(pattern, opcode) for opcode in kernel.opcodes):
                yield f"no instruction matches {pattern}, which is required"
        for pattern in forbidden:
            for opcode, count in kernel.opcodes.items():
                if re.match(pattern, opcode):
                    yield f"{opcode} occurs ({count} times) and is forbidden"


def read_budgets(path: Path) -> tuple[str, list[Budget]]:
    """(the nvcc release that they are made with, the rows)"""
    data = tomllib.loads(path.read_text())
    try:
        return data["nvcc"], [Budget(**row) for row in data.get("kernel", [])]
    except (TypeError, KeyError) as error:
        raise BadBudgets(str(error)) from None


def row_to_add(kernels: list[Kernel]) -> str:
    """The row of budgets.toml for one kernel as it is now on every arch."""
    most = {
        what: max(getattr(k, what) for k in kernels) for what in ("registers", "stack", "spill")
    }
    lines = [f"{what} = {used}" for what, used in most.items() if used or what == "registers"]
    name = re.escape(kernels[0].name).replace(r"\ ", " ")
    return "\n".join(["[[kernel]]", f"name = '{name}'", *lines])


def check(kernels: list[Kernel], budgets: list[Budget]) -> list[str]:
    """Every breach of the budgets, in words; a kernel without a row and a row without one, too."""
    errors, used, without = [], set(), {}
    for kernel in kernels:
        row = next((b for b in budgets if re.fullmatch(b.name, kernel.name)), None)
        if row is None:
            without.setdefault(kernel.name, []).append(kernel)
            continue
        used.add(row.name)
        where = f"{kernel.name} on {kernel.arch} ({kernel.file})"
        errors += [f"{where}: {text}" for text in row.breaches(kernel)]
    for name, group in sorted(without.items()):
        errors.append(
            f"{name} has no row in the budgets. To add, once it is good:\n{row_to_add(group)}"
        )
    errors += [f"the row {b.name!r} matches no kernel" for b in budgets if b.name not in used]
    return errors


def table(kernels: list[Kernel], nvcc: str) -> str:
    """Markdown: a row a kernel, a column an arch."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for k in kernels:
        text = f"{k.registers} / {k.stack} / {k.spill} / {k.smem}"
        cells.setdefault((k.file, k.name), {})[k.arch] = text
    rows = [
        ["file", "kernel", *ARCHS],
        *([f, f"`{n}`", *(by.get(a, "") for a in ARCHS)] for (f, n), by in sorted(cells.items())),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    head = "Registers / bytes of stack / of spills / of static shared memory a block, nvcc"
    return "\n".join([f"{head} {nvcc}:", "", *lines])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="*", type=Path, help="default: csrc/cuda/**/*.cu")
    parser.add_argument(
        "--built", type=Path, help="read the objects of the build in this folder, compile nothing"
    )
    parser.add_argument("--budgets", type=Path, default=HERE / "budgets.toml")
    parser.add_argument("--table", type=Path, help="write the table to this file as well")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "cuda-gates")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args(arguments)

    sources = options.sources or sorted((ROOT / "csrc" / "cuda").rglob("*.cu"))
    release, budgets = read_budgets(options.budgets)
    try:
        tools = sass.find_tools()
        built = options.built and sass.read_build(options.built, sources, tools, options.jobs)
    except sass.MissingTool as missing:
        print(f"SKIPPED: the static gates of the CUDA kernels, because {missing}.")
        return 0
    if options.built:
        kernels, errors = built, []
        unread = {path.name for path in sources} - {kernel.file for kernel in kernels}
        errors += [f"no kernel of {name} is in {options.built}" for name in sorted(unread)]
    else:
        kernels, errors = sass.compile_all(sources, tools, options.cache, options.jobs)
    # With a source that did not compile, rows would be blamed for kernels that are only unseen.
    errors = errors or check(kernels, budgets)
    text = table(kernels, ".".join(map(str, tools.toolkit.version)))
    if kernels:
        print(text)
    if options.table:
        options.table.write_text(text + "\n")
    for error in errors:
        print(f"\nERROR: {error}")
    if errors and tools.toolkit.release != release:
        print(f"\nThe budgets are made with nvcc {release}, and this is {tools.toolkit.release}.")
    count = len({(kernel.file, kernel.name) for kernel in kernels})
    archs = len({kernel.arch for kernel in kernels})
    print(f"\n{len(sources)} files, {count} kernels, {archs} archs: {len(errors)} errors")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
