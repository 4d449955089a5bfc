"""What a figure was measured on."""

import datetime
import platform
import subprocess
from pathlib import Path

import torch

import mlp_ext

from . import held, peers


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
    """`held`: the ISA that all competitors are held to by --isa, "" where the CPU has no more."""
    isa, best = held.held(), mlp_ext.cpu.supported_isas()[-1]
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "cpu": cpu_model(),
        "isa": mlp_ext.cpu.active_isa(),
        "held": isa if isa != best else "",
        "peer_threads": peers.used_threads(),
        "mlp_ext": mlp_ext.__version__,
        "torch": torch.__version__,
        **peers.versions(),
        "python": platform.python_version(),
    }


KINDS = {"avx512": "AVX-512", "avx2": "AVX2", "neon": "NEON", "scalar": "plain C++"}


def kind(about: dict[str, str]) -> str:
    """The kind of machine, by instruction set: AVX-512 with and without BF16 are one."""
    isa = about["isa"]
    return KINDS.get(isa.partition("_")[0], isa)


def host(about: dict[str, str]) -> str:
    """The CPU, and that it was held to less than it has."""
    held_to = about.get("held")
    return about["cpu"] + (f", AVX-512 host held to {KINDS[held_to]}" if held_to else "")


def in_words(about: dict[str, str], threads: int) -> str:
    return (
        f"{host(about)}, {threads} thread{'s' * (threads != 1)}, {about['isa']}, torch "
        f"{about['torch']}, commit {about['commit']}, {about['date']}"
    )
