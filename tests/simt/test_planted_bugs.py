"""The checks of kernels on the host can fail: with each fault planted here, they do.

A fault is a change of the sources' text in a copy of them. Every block barrier of every kernel is
one: without it some schedule must give other values, or the thread sanitizer must see a race.
"""

import os
import re
import shutil

import pytest
from host_build import PROGRAMS, ROOT, build, run

KERNELS = sorted((ROOT / "csrc" / "cuda").glob("*.cuh"))
BARRIER = re.compile(r"__syncthreads\(\);")
# In `make test` some of them; all in `make check-cuda`.
EVERY_BARRIER = "thread" in os.getenv("SIMT_FLAVOURS", "")

PRIMITIVES = ("run_primitives", "tests/simt/run_primitives.cpp")
CROSS_ENTROPY = ("run_cross_entropy", "csrc/cuda/cross_entropy.cuh")
ELEMENTWISE = ("run_elementwise_loss", "csrc/cuda/elementwise_loss.cuh")
BACKWARD = ("run_activation", "csrc/cuda/activation_backward.cuh")
# (program, file, what stands there, what is planted[, the flavour that finds it]) by what is wrong.
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
    # The activation's backward pass and bias gradient.
    "rows-of-the-next-part": (
        *BACKWARD,
        "behind < p_.args.rows ? behind",
        "behind < p_.args.rows ? behind + 1",
    ),
    "rows-behind-the-last": (*BACKWARD, "if (row < end) store_chunk", "store_chunk"),
    "columns-behind-the-last": (
        *BACKWARD,
        "if (column_ >= p_.args.columns) end",
        "if (begin < 0) end",
    ),
    "sums-of-columns-behind-the-last": (
        *BACKWARD,
        "if (column >= p_.args.columns) continue;",
        "",
    ),
    "a-warp-left-out-of-the-sum": (*BACKWARD, "w < kWarps", "w < kWarps - 1"),
    "lanes-that-are-not-summed": (
        *BACKWARD,
        "int d = p_.lanes; d < 32",
        "int d = p_.lanes; d < 16",
    ),
    "a-pack-of-an-unaligned-row": (
        "run_activation",
        "csrc/cuda/columns.h",
        "columns % kColumns<T> == 0 && packs<T>(p, ld)",
        "columns % kColumns<T> == 0 && (p || ld)",
    ),
    # The losses.
    "sums-over-classes-behind-the-last": (
        *CROSS_ENTROPY,
        "if (!exists || c >= classes) continue;",
        "if (!exists) continue;",
    ),
    "a-gradient-behind-the-last-class": (
        *CROSS_ENTROPY,
        "if (c >= classes) continue;",
        "if (c > classes) continue;",
    ),
    "ignored-rows-in-the-mean": (
        *CROSS_ENTROPY,
        "    if (target == a.ignore_index) continue;\n",
        "",
    ),
    "a-counter-that-nobody-resets": (
        *CROSS_ENTROPY,
        "p.workspace->finished = 0;",
        "p.workspace->finished = 1;",
    ),
    "a-pixel-of-the-wrong-image": (
        *CROSS_ENTROPY,
        "image * a.rows * a.classes +",
        "image * a.rows +",
    ),
    "a-maximum-that-smoothing-misses": (
        "run_cross_entropy",
        "csrc/cuda/cross_entropy_row.h",
        "s.uz + s.u * shift",
        "s.uz",
    ),
    "digits-of-a-confident-row": (
        "run_cross_entropy",
        "csrc/cuda/cross_entropy_row.h",
        "at_target == C(1) ?",
        "at_target < C(0) ?",
    ),
    "a-sum-before-the-last-was-read": (
        "run_cross_entropy",
        "csrc/cuda/loss_sum.h",
        "  __syncthreads();  // an earlier",
        "  // an earlier",
    ),
    "a-sum-before-all-warps-have-theirs": (
        "run_cross_entropy",
        "csrc/cuda/loss_sum.h",
        "= mine;\n  __syncthreads();",
        "= mine;",
    ),
    "the-last-element": (*ELEMENTWISE, "last < p.args.n)", "last < p.args.n - 1)"),
    "a-weight-of-the-next-row": (
        *ELEMENTWISE,
        "column + 1 < p.columns ? column + 1 : 0",
        "column + 1 < p.columns ? column + 1 : column",
    ),
    "what-lies-before-the-first-pack": (
        "run_elementwise_loss",
        "csrc/cuda/scale.cuh",
        "if (thread < head)",
        "if (thread < head - 1)",
    ),
    "a-bias-of-the-wrong-column": (
        "run_activation",
        "csrc/cuda/activation.cuh",
        "p.bias[column + j]",
        "p.bias[column]",
    ),
    "a-chunk-of-the-wrong-tensor": (
        "run_optimizer_lists",
        "csrc/cuda/multi_tensor.cuh",
        "list.first_block[middle] <= block",
        "list.first_block[middle] < block",
    ),
    "a-chunk-beyond-its-tensor": (
        "run_optimizer_lists",
        "csrc/cuda/multi_tensor.cuh",
        "left < list.chunk ? left : list.chunk",
        "left < 0 ? left : list.chunk",
    ),
    "a-step-that-skips-the-tail": (
        "run_optimizer_lists",
        "csrc/cuda/optimizers.cuh",
        "i = packed + thread",
        "i = packed + thread + 1",
    ),
    "packs-of-an-unaligned-stream": (
        "run_optimizer_lists",
        "csrc/cuda/optimizers.cuh",
        "is_aligned(addresses_of(tensor)) ?",
        "is_aligned(0) ?",
        "address",
    ),
    "rules-of-the-launch-before": (
        "run_optimizer_lists",
        "csrc/cuda/optimizers_launch.cuh",
        "p.rules = rules + first;\n    if",
        "p.rules = rules;\n    if",
    ),
    "counters-of-the-launch-before": (
        "run_optimizer_lists",
        "csrc/cuda/optimizers_launch.cuh",
        "std::copy(counters + first, counters + first + p.count",
        "std::copy(counters, counters + p.count",
    ),
    "a-count-despite-found-inf": (
        "run_optimizer_lists",
        "csrc/cuda/optimizers.cuh",
        "count_up(const __grid_constant__ CountParameters<Args, Rule> p) {\n"
        "  if (p.found_inf && *p.found_inf != 0) return;\n",
        "count_up(const __grid_constant__ CountParameters<Args, Rule> p) {\n",
    ),
    "partial-sums-left-out": (
        "run_clip_norm",
        "csrc/cuda/clip_norm.cuh",
        "i < p.partials; i += kMultiTensorThreads",
        "i < p.partials && i < kMultiTensorThreads; i += kMultiTensorThreads",
    ),
    "partial-sums-over-those-of-the-launch-before": (
        "run_clip_norm",
        "csrc/cuda/clip_norm.cu",
        "    p.partial += blocks;\n",
        "",
    ),
}


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
        if EVERY_BARRIER or i == 0
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
            if run(target, SIMT_ORDERS=orders).returncode != 0:
                return True
        finally:
            target.unlink()
    return False


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
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
    flavours = ("plain", "thread") if EVERY_BARRIER else ("plain",)
    assert any(found(copy, program, flavours) for program in programs)
