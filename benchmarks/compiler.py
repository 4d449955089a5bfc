"""The system's C++ compiler, for the little libraries that the benchmarks compile themselves."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"


class NoCompiler(Exception):
    """There is none, or it failed; the message says which."""


def find_compiler() -> list[str]:
    """CXX, or the first of c++, g++ and clang++ that is there."""
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    raise NoCompiler(f"no C++ compiler found ({' '.join(named) or 'c++, g++, clang++'})")


def compile_to(output: Path, *arguments) -> Path:
    """Runs the compiler with `-o output`, which appears only once it is whole."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(f".{os.getpid()}.partial")
    command = [*find_compiler(), *map(str, arguments), "-o", str(partial)]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode != 0:
        partial.unlink(missing_ok=True)
        raise NoCompiler(f"{shlex.join(command)} failed:\n{finished.stderr.strip()}")
    partial.replace(output)
    return output
