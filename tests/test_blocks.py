"""The blocks of a product: any size gives the same, and the host's caches choose it."""

import platform
import subprocess
from pathlib import Path

import pytest

import mlp_ext
from benchmarks.compiler import NoCompiler, compile_to, find_compiler
from mlp_ext.__main__ import report

HERE = Path(__file__).parent
CPU = HERE.parent / "csrc" / "cpu"


def test_blocks(tmp_path):
    try:
        find_compiler()
    except NoCompiler as reason:
        pytest.skip(str(reason))
    isa = "avx2" if platform.machine() in ("x86_64", "AMD64") else "neon"
    targets = [CPU / "targets" / f"{name}_gemm.cpp" for name in ("scalar", isa)]
    program = compile_to(
        tmp_path / "check",
        "-std=c++20",
        "-O1",
        HERE / "blocks_check.cpp",
        CPU / "blocks.cpp",
        *targets,
    )
    finished = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stdout


def test_the_active_blocks_are_told(isa):
    kc, mc, nc = mlp_ext._load._C.cpu_block_sizes()
    assert kc >= 32 and mc >= 8 and nc >= 64
    assert f"in blocks of KC {kc}, MC {mc}, NC {nc}" in " ".join(report().split())
