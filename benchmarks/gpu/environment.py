"""What a figure was measured on: the GPU, its driver, torch, and what was compiled for it."""

import datetime
import platform
import shutil
import subprocess
import sys

import torch

import mlp_ext

from ..machine import commit, cpu_model

_QUERY = (
    "name,driver_version,clocks.max.sm,clocks.max.mem,power.limit,ecc.mode.current,mig.mode.current"
)


def _output(*command: str) -> str:
    """What a program prints, or in one line why it did not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"
    return (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip()


def nvidia_smi() -> str:
    """Of all GPUs, a line each; clocks and power limits explain what a card's name does not."""
    if shutil.which("nvidia-smi") is None:
        return "no nvidia-smi"
    return _output("nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader")


def build_lines() -> list[str]:
    """`python -m mlp_ext` about the CUDA half: nvcc, architectures, and which GPU runs which."""
    lines = _output(sys.executable, "-m", "mlp_ext").splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith("CUDA kernels")), None)
    if start is None:
        return lines[-1:]
    more = [line for line in lines[start + 1 :]]
    end = next((i for i, line in enumerate(more) if not line.startswith(" ")), len(more))
    return [line.removeprefix("CUDA kernels").strip() for line in [lines[start], *more[:end]]]


def describe(device) -> dict:
    """`device`: see device.py."""
    properties = device.properties
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "nvidia_smi": nvidia_smi(),
        "torch": str(torch.__version__),
        "torch_cuda": torch.version.cuda,
        "torch_archs": torch.cuda.get_arch_list(),
        "mlp_ext": mlp_ext.__version__,
        "build": build_lines(),
        "cpu": cpu_model(),
        "python": platform.python_version(),
    }


def in_words(about: dict) -> str:
    return (
        f"{about['gpu']} ({about['compute_capability']}), torch {about['torch']}, commit "
        f"{about['commit']}, {about['date']}"
    )
