"""Compiles a program that runs CUDA kernels on the host: plainly, or under a sanitizer."""

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PROGRAMS = sorted(path.stem for path in HERE.glob("run_*.cpp"))

FLAGS = ["-std=c++17", "-g1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
# What kernels are compiled with. The scheduler of the thread sanitizer's build is not instrumented:
# it tells the sanitizer which fiber runs, and its own accesses order nothing.
FLAVOURS = {
    "plain": ["-O2"],
    "address": ["-O1", "-DSIMT_ASAN", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-fsanitize=thread"],
}
ENVIRONMENT = {
    # The fibers' stacks are not the ones that these two know.
    "ASAN_OPTIONS": "detect_stack_use_after_return=0:detect_leaks=0",
    "TSAN_OPTIONS": "halt_on_error=1",
}


def _scheduler_flags(flavour):
    if flavour == "thread":
        return ["-O1", "-DSIMT_TSAN"]
    return FLAVOURS[flavour]


def _stamp(source_root, flavour):
    """Of everything that a program may include."""
    digest = hashlib.sha256(repr((FLAGS, FLAVOURS[flavour], os.getenv("CXX"))).encode())
    for folder in ("csrc/cuda", "csrc/common", "tests/simt"):
        for path in sorted((source_root / folder).rglob("*")):
            if path.suffix in {".h", ".cuh", ".cu", ".cpp"}:
                digest.update(str(path.relative_to(source_root)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def build(program, flavour="plain", source_root=ROOT):
    """The path of the compiled program. source_root: another copy of csrc/ and tests/simt/."""
    folder = ROOT / "build" / "simt"
    name = f"{program}-{flavour}-"
    if source_root != ROOT:  # or another process might take it for an old one
        name = f"planted-{name}"
    target = folder / (name + _stamp(source_root, flavour))
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    compiler = os.getenv("CXX", "g++").split()
    here = source_root / "tests" / "simt"
    common = [*FLAGS, "-DMLP_EXT_ON_HOST", f"-I{here}", "-c"]
    parts = []
    for source, flags in (
        (here / f"{program}.cpp", FLAVOURS[flavour]),
        (here / "scheduler.cpp", _scheduler_flags(flavour)),
    ):
        part = target.with_name(f"{target.name}-{os.getpid()}-{source.stem}.o")
        _call([*compiler, *common, *flags, str(source), "-o", str(part)])
        parts.append(part)
    made = target.with_name(f"{target.name}-{os.getpid()}")
    _call([*compiler, *FLAVOURS[flavour], *map(str, parts), "-o", str(made)])
    for part in parts:
        part.unlink()
    if source_root == ROOT:
        for old in folder.glob(name + "*"):
            if old != made and "." not in old.name:
                old.unlink()
    made.rename(target)
    return target


def links(flavour):
    """Whether the compiler has what the flavour needs: some systems package sanitizers apart."""
    compiler = os.getenv("CXX", "g++").split()
    command = [*compiler, *FLAVOURS[flavour], "-x", "c++", "-", "-o", os.devnull]
    done = subprocess.run(command, input="int main() {}", capture_output=True, text=True)
    return done.returncode == 0


def included(path, seen=None):
    """What the file includes of the project, and so on, itself too."""
    seen = set() if seen is None else seen
    if path not in seen and path.is_file():
        seen.add(path)
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', path.read_text(), re.MULTILINE):
            for folder in (path.parent, ROOT / "csrc"):
                included((folder / name).resolve(), seen)
    return seen


def _call(command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-4000:]}"


def run(path, timeout=600, **variables):
    """The finished process, its output in text. variables: of the environment (SIMT_ORDERS)."""
    command = [str(path)]
    if shutil.which("setarch"):
        command = ["setarch", "-R", *command]  # the thread sanitizer wants the usual addresses
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **ENVIRONMENT, **variables},
    )
