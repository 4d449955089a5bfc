"""The target regions as the compiler sees them: no symbol of a wide ISA that the linker could pick
for a narrow one, and the AArch64 kernels compiled and run under emulation where the tools are."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ROOT / "csrc" / "cpu" / "targets"
FLAGS = ["-std=c++20", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fPIC"]


def run(*command) -> str:
    finished = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def compiled(target, tmp_path):
    """The object of this target: that of the build in this checkout, if it is newer than every
    source of csrc/cpu and csrc/common."""
    folders = [TARGETS.parent, TARGETS.parents[1] / "common"]
    newest = max(p.stat().st_mtime for f in folders for p in f.rglob("*.*"))
    objects = (ROOT / "build").glob(f"temp*/csrc/cpu/targets/{target}.o")
    made = next((path for path in objects if path.stat().st_mtime > newest), None)
    if made is None:
        made = tmp_path / f"{target}.o"
        run("g++", *FLAGS, "-O1", "-c", TARGETS / f"{target}.cpp", "-o", made)
    return made


@pytest.mark.skipif(not shutil.which("g++") or not shutil.which("nm"), reason="needs g++ and nm")
@pytest.mark.parametrize("target", sorted(path.stem for path in TARGETS.glob("*.cpp")))
def test_only_the_table_leaves_a_target_file(target, tmp_path):
    """A weak symbol here (an inline function or template instance with linkage) may be compiled for
    AVX-512 and yet be the copy that the linker keeps for everyone: SIGILL on an older CPU."""
    lines = run("nm", "-C", compiled(target, tmp_path)).splitlines()
    defined = [line.split(maxsplit=2) for line in lines]
    visible = [line[2] for line in defined if len(line) == 3 and line[1] in "TWVuDRB"]
    isa = target.removesuffix("_gemm")
    x86 = platform.machine() in ("x86_64", "AMD64")
    made_here = isa == "scalar" or isa.startswith("avx") == x86
    table = "kGemm" if target.endswith("_gemm") else "kTable"
    expected = [f"mlp_ext::cpu::{isa}::{table}"] if made_here else []
    assert [name for name in visible if not name.startswith("DW.ref")] == expected


@pytest.mark.skipif(not shutil.which("aarch64-linux-gnu-g++"), reason="needs aarch64-linux-gnu-g++")
def test_neon_agrees_with_scalar(tmp_path):
    program = tmp_path / "kernel_check"
    sources = [Path(__file__).parent / "kernel_check.cpp", *TARGETS.parent.glob("*.cpp")]
    sources += [*TARGETS.glob("scalar*.cpp"), *TARGETS.glob("neon*.cpp")]
    run("aarch64-linux-gnu-g++", *FLAGS, "-O1", "-static", *sources, "-o", program)
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("compiled; qemu-aarch64 is needed to run it")
    assert "neon: 0 mismatches" in run(emulator, program)
