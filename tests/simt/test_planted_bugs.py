"""The checks of kernels on the host can fail: with each fault planted here, they do.

A fault is a change of the sources' text in a copy of them. Every block barrier of every kernel is
one: without it some schedule must give other values, or the thread sanitizer must see a race.
"""

import os
import re
import shutil

import pytest
from faults import FAULTS
from host_build import PROGRAMS, ROOT, build, included, links, run

KERNELS = sorted((ROOT / "csrc" / "cuda").rglob("*.cuh"))
BARRIER = re.compile(r"__syncthreads\(\);")
# Each is compiled anew, for 5 to 30 seconds: the first of each program, or all where SIMT_FAULTS is
# "all". Barriers that no value shows are then looked for by the thread sanitizer.
ALL = os.getenv("SIMT_FAULTS") == "all"


def programs_of(kernel):
    return [n for n in PROGRAMS if kernel in included(ROOT / f"tests/simt/{n}.cpp")]


def barriers():
    return [
        pytest.param(kernel, i, id=f"{kernel.stem}-{i}")
        for kernel in KERNELS
        for i in range(len(BARRIER.findall(kernel.read_text())))
        if ALL or i == 0
    ]


def faults():
    """All, or those of the stand-in itself and the first of each other program and flavour."""
    first: dict[tuple, str] = {}
    for name, (program, _, _, _, *flavour) in FAULTS.items():
        first.setdefault((program, *flavour), name)
    return [
        pytest.param(fault, id=name)
        for name, fault in FAULTS.items()
        if ALL or fault[0] == "run_primitives" or name in first.values()
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
            done = run(target, SIMT_ORDERS=orders, SIMT_STOP="1")
            # The thread sanitizer may also refuse to run at all.
            if done.returncode != 0 and (flavour != "thread" or "data race" in done.stderr):
                return True
        finally:
            target.unlink()
    return False


@pytest.mark.parametrize("fault", faults())
def test_fault_is_found(copy, fault):
    program, file, there, planted, *flavours = fault
    if not all(map(links, flavours)):
        pytest.skip(f"the compiler does not link with {' and '.join(flavours)}")
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
