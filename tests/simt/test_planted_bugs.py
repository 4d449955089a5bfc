"""The checks of kernels on the host can fail: with each fault planted here, they do.

A fault is a change of the sources' text in a copy of them. Every block barrier of every kernel is
one: without it some schedule must give other values, or the thread sanitizer must see a race.
"""

import os
import re
import shutil

import pytest
from faults import FAULTS
from host_build import PROGRAMS, ROOT, build, run

KERNELS = sorted((ROOT / "csrc" / "cuda").glob("*.cuh"))
BARRIER = re.compile(r"__syncthreads\(\);")
<<<<<<< HEAD
# Each is compiled anew, for 5 to 30 seconds: some of them in `make test`, all in `make check-cuda`.
ALL = "thread" in os.getenv("SIMT_FLAVOURS", "")
=======
# In `make test` some of them; all in `make check-cuda`.
EVERY_BARRIER = "thread" in os.getenv("SIMT_FLAVOURS", "")

GEMM = ("run_gemm", "csrc/cuda/gemm_kernel.cuh")
PRODUCT = ("run_gemm", "csrc/cuda/gemm_product.cuh")
EPILOGUE = ("run_gemm", "csrc/cuda/gemm_epilogue.cuh")
PRIMITIVES = ("run_primitives", "tests/simt/run_primitives.cpp")
# (program, file, what stands there, what is planted) by what is wrong.
FAULTS = {
    "no-wait-for-a-copy": (*PRIMITIVES, "  cp_async_wait<0>();\n", ""),
    "an-exited-lane": (
        *PRIMITIVES,
        "fa[4], fb[2];\n  for",
        "fa[4], fb[2];\n  if (threadIdx.x == 9) return;\n  for",
    ),
    "a-store-behind-the-shared-memory": (
        *PRIMITIVES,
        "    shared[threadIdx.x] =",
        "    shared[threadIdx.x + 1] =",
    ),
    "a-barrier-that-not-all-reach": (
        *PRIMITIVES,
        "    __syncthreads();\n    y[",
        "    if (threadIdx.x < 32) __syncthreads();\n    y[",
    ),
    "a-wrong-fragment": (
        "run_primitives",
        "csrc/cuda/ptx/mma.h",
        "4 * (2 * q + 1) + owner",
        "4 * (q + 1) + owner",
    ),
    "gemm-a-stage-read-too-early": (*GEMM, "cp_async_wait<kAhead - 1>", "cp_async_wait<kAhead>"),
    "gemm-a-tile-twice": (*GEMM, "left < kGroup ? left : kGroup", "left * 0 + kGroup"),
    "gemm-inf-stays-nan": (
        *GEMM,
        "if (__syncthreads_or(!finite))",
        "if (__syncthreads_or(!finite) > 1)",
    ),
    "gemm-no-low-parts": (
        *PRODUCT,
        "mma_tf32(part[i], a_hi[i / NT], b_lo[i % NT]);",
        "(void)b_lo[i % NT];",
    ),
    "gemm-k-past-its-end": ("run_gemm", "csrc/cuda/gemm_stage.cuh", "? depth - at", "? most"),
    "gemm-the-saved-of-another-row": (
        *EPILOGUE,
        "saved_at(r + kAhead * kLanes)",
        "saved_at(r + kLanes)",
    ),
    "gemm-a-part-left-out": (*EPILOGUE, "part < sums.count;", "part < sums.count - (part > 0);"),
    "gemm-rows-outside": (*EPILOGUE, "g.M - m0 < ROWS ? int(g.M - m0) : ROWS", "ROWS"),
}
>>>>>>> cuda-gemm


def programs_of(kernel):
    """The programs that include the kernels' launchers."""
    return [
        name
        for name in PROGRAMS
        if f"/{kernel.stem}.cu" in (ROOT / "tests/simt" / f"{name}.cpp").read_text()
    ]


def barriers():
    return [
        pytest.param(kernel, i, id=f"{kernel.stem}-{i}")
        for kernel in KERNELS
        for i in range(len(BARRIER.findall(kernel.read_text())))
        if ALL or i == 0
    ]


def faults():
    """All, or those of the stand-in itself and the first of each other program."""
    first: dict[str, str] = {}
    for name, fault in FAULTS.items():
        first.setdefault(fault[0], name)
    return [
        pytest.param(fault, id=name)
        for name, fault in FAULTS.items()
        if ALL or fault[0] == "run_primitives" or first[fault[0]] == name
    ]


@pytest.fixture
def copy(tmp_path):
    """copy(): a copy of the sources to plant something in."""
    for folder in ("csrc/cuda", "csrc/common", "tests/simt"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    return tmp_path


def found(source_root, program, flavours=("plain",)):
    """Whether some check of the program fails on those sources."""
    for flavour in flavours:
        orders = "2,3" if flavour == "thread" else "0,1,2,3,4,5"
        target = build(program, flavour, source_root)
        try:
            if run(target, SIMT_ORDERS=orders, SIMT_STOP="1").returncode != 0:
                return True
        finally:
            target.unlink()
    return False


@pytest.mark.parametrize("fault", faults())
def test_fault_is_found(copy, fault):
    program, file, there, planted, *flavours = fault
    path = copy / file
    text = path.read_text()
    assert text.count(there) >= 1, f"{file} no longer has {there!r}"
    path.write_text(text.replace(there, planted, 1))
    assert found(copy, program, flavours or ("plain",))


@pytest.mark.parametrize("kernel, which", barriers())
def test_missing_barrier_is_found(copy, kernel, which):
    programs = programs_of(kernel)
    assert programs, f"no program runs {kernel.name}"
    path = copy / kernel.relative_to(ROOT)
    text = path.read_text()
    at = [match.span() for match in BARRIER.finditer(text)][which]
    path.write_text(text[: at[0]] + text[at[1] :])
    flavours = ("plain", "thread") if ALL else ("plain",)
    assert any(found(copy, program, flavours) for program in programs)
