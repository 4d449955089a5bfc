"""What a figure was measured on."""

import datetime
import platform
import subprocess
from pathlib import Path

import torch

import mlp_ext

from . import peers


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit() -> str:
    """The checkout's commit, with a + if the tree differs from it."""
    folder = Path(__file__).resolve().parent
    try:
        name, changed = (
            subprocess.run(
                ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
            ).stdout.strip()
            for arguments in (
                ("rev-parse", "--short", "HEAD"),
                ("status", "--porcelain", "--untracked-files=no"),
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + ("+" if changed else "")


def describe() -> dict[str, str]:
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "cpu": cpu_model(),
        "isa": mlp_ext.cpu.active_isa(),
        "peer_threads": peers.used_threads(),
        "mlp_ext": mlp_ext.__version__,
        "torch": torch.__version__,
        **peers.versions(),
        "python": platform.python_version(),
    }


def in_words(about: dict[str, str], threads: int) -> str:
    return (
        f"{about['cpu']}, {threads} thread{'s' * (threads != 1)}, {about['isa']}, torch "
        f"{about['torch']}, commit {about['commit']}, {about['date']}"
    )
