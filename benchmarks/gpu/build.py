"""The machine that a run is on, and the extension compiled in place for its GPU alone."""

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from .child import ROOT, Child, Ending

# By a process of its own: a driver that hangs is to cost its minute and no more.
ASK = """
import json, platform, torch
from torch import cuda
about = {"torch": torch.__version__, "torch_cuda": torch.version.cuda, "gpu": None,
         "python": platform.python_version()}
if cuda.is_available():
    gpu = cuda.get_device_properties(cuda.current_device())
    about |= {"gpu": gpu.name, "capability": [gpu.major, gpu.minor], "l2_bytes": gpu.L2_cache_size,
              "multiprocessors": gpu.multi_processor_count, "memory_bytes": gpu.total_memory}
print(json.dumps(about))
"""
SMI = "--query-gpu=driver_version,clocks.max.sm,clocks.max.mem,power.limit,ecc.mode.current"


def _line(command: list[str]) -> str:
    """The last line that a program prints; "" if it fails."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=90, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().rpartition("\n")[2]


def machine() -> dict:
    """`gpu` is None where torch sees none, or there is no torch."""
    about = json.loads(_line([sys.executable, "-c", ASK]) or '{"gpu": null, "torch": null}')
    return about | {
        "cores": os.cpu_count(),
        "commit": _line(["git", "rev-parse", "--short", "HEAD"]),
        "driver, clocks, power, ECC": _line(["nvidia-smi", SMI, "--format=csv,noheader"]),
    }


def arch_of(capability: list[int]) -> str:
    """As torch spells it: 9.0a has the instructions that are of 9.0 alone."""
    number = ".".join(map(str, capability))
    return number + "a" if number == "9.0" else number


def is_up_to_date(about: dict, root: Path = ROOT) -> bool:
    """Whether the extension is there, for this torch and this GPU, and newer than its sources."""
    info = root / "mlp_ext" / "_build_info.py"
    library = root / "mlp_ext" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not info.exists() or not library.exists():
        return False
    spec = importlib.util.spec_from_file_location("_build_info", info)
    built = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(built)
    arch = "sm_" + arch_of(about["capability"]).replace(".", "")
    sources = [root / "setup.py", *(root / "csrc").rglob("*.*")]
    return (
        (built.TORCH_VERSION, built.CUDA) == (about["torch"], about["torch_cuda"])
        and arch in built.CUDA_ARCHS
        and library.stat().st_mtime >= max(path.stat().st_mtime for path in sources)
    )


def build(about: dict, log: Path, seconds: float) -> Ending:
    environment = {
        "MLP_EXT_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": arch_of(about["capability"]),
        "MAX_JOBS": str(os.cpu_count()),
    }
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return Child(command, log, environment).wait(seconds)
