"""`--isa avx2`: this process and every competitor in it, held to an older instruction set.

An AVX-512 machine then says what each would show on a CPU without it, but for caches, clock and
memory, which stay the machine's own. Each library reads its own variable when it is loaded, so the
process starts itself again with all of them set.
"""

import os
import sys

import torch

import mlp_ext

MARK = "MLP_EXT_BENCHMARKS_ISA"  # which isa the process was started again for

# The name that compilers have for a CPU with this ISA and nothing later.
MARCH = {"avx2": "haswell"}


def _numpy_features() -> list[str]:
    """Those above AVX2 that this numpy has code for and this CPU has; numpy refuses other names."""
    from numpy._core import _multiarray_umath as numpy_build

    later = [n for n in numpy_build.__cpu_dispatch__ if n.startswith("AVX512") or n == "X86_V4"]
    return [name for name in later if numpy_build.__cpu_features__[name]]


def environment(isa: str) -> dict[str, str]:
    """The variables that hold mlp_ext, torch (with MKL, oneDNN and torch.compile) and numpy (with
    its OpenBLAS, which scikit-learn uses) to `isa`. None holds JAX's products (peers.py)."""
    upper = isa.upper()
    return {
        MARK: isa,
        "MLP_EXT_CPU_ISA": isa,
        "ATEN_CPU_CAPABILITY": isa,
        "MKL_ENABLE_INSTRUCTIONS": upper,
        "ONEDNN_MAX_CPU_ISA": upper,
        "TORCHINDUCTOR_CPP_MARCH": MARCH[isa],
        "OPENBLAS_CORETYPE": "Haswell",
        "NPY_DISABLE_CPU_FEATURES": " ".join(_numpy_features()),
    }


def held() -> str:
    """The ISA that this process is held to, "" for none."""
    return os.environ.get(MARK, "")


def march() -> str:
    """For the benchmarks' own compilations."""
    return MARCH.get(held(), "native")


def check(isa: str) -> None:
    """SystemExit unless torch and mlp_ext are held."""
    found = mlp_ext.cpu.active_isa(), torch.backends.cpu.get_cpu_capability().lower()
    if found != (isa, isa):
        raise SystemExit(f"not held to {isa}: mlp_ext runs {found[0]}, torch {found[1]}")


def hold(isa: str, arguments: list[str] | None) -> None:
    """Starts `python -m benchmarks` again, held to `isa`, unless this process is.

    SystemExit where the CPU or the build has no such ISA.
    """
    if held() == isa:
        return check(isa)
    if isa not in mlp_ext.cpu.supported_isas():
        raise SystemExit(f"this CPU and build run {', '.join(mlp_ext.cpu.supported_isas())}")
    given = sys.argv[1:] if arguments is None else arguments
    command = [sys.executable, "-m", "benchmarks", *given]
    sys.stdout.flush()
    os.execve(sys.executable, command, os.environ | environment(isa))
