"""Finds the CUDA toolkit to compile this folder with, for setup.py and tests/cuda/gates.py.

Only the standard library is used: setup.py runs before anything is installed.
"""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

OLDEST = (12, 4)
OLDEST_CAPABILITY = (8, 0)
OLD_NAMES = ("Kepler", "Maxwell", "Pascal", "Volta", "Turing")  # torch's, of older ones
USUAL_HOME = "/usr/local/cuda"
# sm_90a code runs on GPUs of capability 9.0 alone; whatever is newer compiles the PTX at first use.
# torch's own default is the GPU in sight, or, without one, all of its archs and no 9.0a.
DEFAULT_ARCHS = "8.0+PTX;9.0a"
# What torch's own CUDA headers include. A toolkit of compiler and runtime has the first alone.
HEADERS = ("cuda_runtime_api.h", "cublas_v2.h", "cublasLt.h", "cusparse.h", "cusolverDn.h")

# No flag may contain the word "arch": torch would take it for the user's choice of GPUs.
NVCC_FLAGS = [
    "-std=c++17",
    "-O3",
    "-lineinfo",  # costs no instruction; profilers and compute-sanitizer then name source lines
    "--expt-relaxed-constexpr",
    # torch's build switches these operators off; kernels are to mean the same without it.
    "-U__CUDA_NO_HALF_OPERATORS__",
    "-U__CUDA_NO_HALF_CONVERSIONS__",
    "-U__CUDA_NO_HALF2_OPERATORS__",
    "-U__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-Xcompiler",
    "-fvisibility=hidden,-ffp-contract=off",
]


class NoCuda(Exception):
    """Why there can be no CUDA kernels; a clause that goes on after "because"."""


@dataclass(frozen=True)
class Toolkit:
    nvcc: str
    version: tuple[int, ...]  # (13, 0, 88)
    home: Path  # the folder above nvcc's bin

    @property
    def release(self) -> str:
        return f"{self.version[0]}.{self.version[1]}"

    def folders(self, *names: str) -> list[Path]:
        """Those below home, or, where conda puts them, below home/targets, that exist."""
        roots = [self.home, *self.home.glob(f"targets/{platform.machine()}-linux")]
        return [root / name for root in roots for name in names if (root / name).is_dir()]


def pip_folders(pattern: str) -> list[Path]:
    """Folders of the pip packages of CUDA: nvidia/cu13/<pattern>, and for CUDA 12 one folder for
    each package, as nvidia/cublas/<pattern>."""
    spec = importlib.util.find_spec("nvidia")
    places = (spec.submodule_search_locations or []) if spec else []
    return [folder for place in places for folder in sorted(Path(place).glob(f"*/{pattern}"))]


def find_nvcc() -> Toolkit:
    """The toolkit of CUDA_HOME if that is set, or else of the first nvcc: on PATH, in USUAL_HOME,
    from pip. Raises NoCuda."""
    home = os.getenv("CUDA_HOME") or os.getenv("CUDA_PATH")
    places = [*os.get_exec_path(), f"{USUAL_HOME}/bin", *pip_folders("bin")]
    if home:
        places = [Path(home, "bin")]
    nvcc = shutil.which("nvcc", path=os.pathsep.join(map(str, places)))
    if nvcc is None:
        where = f"in {places[0]} (CUDA_HOME)" if home else f"on PATH, in {USUAL_HOME} or from pip"
        raise NoCuda(f"there is no nvcc {where}")
    # A dry run prints the folder that nvcc takes for its own, which neither the script that some
    # put on PATH nor a link there gives away.
    commands = [nvcc, "--version"], [nvcc, "-dryrun", "-c", "-x", "cu", os.devnull]
    version, dry = (subprocess.run(c, capture_output=True, text=True) for c in commands)
    number = re.search(r"release \S+ V(\d+)\.(\d+)\.(\d+)", version.stdout)
    top = re.search(r"^#\$ TOP=(.*)$", dry.stderr, re.MULTILINE)
    if not number or not top:
        raise NoCuda(f"{nvcc} does not work: {(version.stderr + dry.stderr).strip()[-300:]}")
    return Toolkit(nvcc, tuple(map(int, number.groups())), Path(top.group(1)).resolve())


def include_dirs(toolkit: Toolkit) -> tuple[list[Path], list[str]]:
    """The folders to search, and those of HEADERS that are in none of them.

    The toolkit's come first: where pip's runtime is of another version, nvcc needs its own.
    """
    folders, missing = toolkit.folders("include"), []
    for header in HEADERS:
        if any((folder / header).exists() for folder in [*folders, Path("/usr/include")]):
            continue
        found = [folder for folder in pip_folders("include") if (folder / header).exists()]
        folders += found[:1]
        missing += [] if found else [header]
    return folders, missing


def library_dirs(toolkit: Toolkit) -> list[Path]:
    return [*toolkit.folders("lib64", "lib"), *pip_folders("lib")]


def usable_archs(archs: str, gpus: int) -> tuple[str, list[str]]:
    """A TORCH_CUDA_ARCH_LIST without the GPUs that are too old for these kernels, and those: lists
    that are set for everything, as in containers, have some. Of unknown ones torch complains.

    gpus: that torch sees, which "native" stands for. Raises NoCuda where nothing is left.
    """
    kept, too_old = [], []
    for arch in filter(None, re.split("[ ;]", archs)):
        number = re.match(r"(\d+)\.(\d+)", arch)
        old = number and tuple(map(int, number.groups())) < OLDEST_CAPABILITY
        (too_old if old or arch.partition("+")[0] in OLD_NAMES else kept).append(arch)
    if too_old and not kept:
        raise NoCuda(
            f"TORCH_CUDA_ARCH_LIST is {archs}, and {'.'.join(map(str, OLDEST_CAPABILITY))} is the "
            "oldest compute capability that the kernels run on"
        )
    if "native" in kept and gpus == 0:
        raise NoCuda("TORCH_CUDA_ARCH_LIST is native, and torch sees no GPU to take it from")
    return ";".join(kept), too_old


def toolkit_for(torch_version: str, torch_cuda: str | None) -> Toolkit:
    """The toolkit that is found, if it can build for this torch; else raises NoCuda."""
    if torch_cuda is None:
        raise NoCuda(f"torch {torch_version} is not a CUDA build")
    toolkit = find_nvcc()
    if toolkit.version < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise NoCuda(f"{toolkit.nvcc} is of CUDA {toolkit.release}, and {oldest} is the oldest")
    if toolkit.version[0] != int(torch_cuda.split(".")[0]):
        raise NoCuda(
            f"{toolkit.nvcc} is of CUDA {toolkit.release}, and torch {torch_version} of CUDA "
            f"{torch_cuda}: the major versions must agree (CUDA_HOME names another toolkit)"
        )
    _, missing = include_dirs(toolkit)
    if missing:
        raise NoCuda(
            f"neither {toolkit.home} nor a pip package of CUDA has the headers {', '.join(missing)}"
        )
    return toolkit
