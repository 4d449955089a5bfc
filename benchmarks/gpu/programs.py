"""Other programs that are part of the full stage: pytest on tests/cuda, and compute-sanitizer."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

from ..compiler import ROOT
from .budget import Budget

PASSED, FAILED, SKIPPED = "passed", "FAILED", "skipped"
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
PYTEST_SECONDS, TOOL_SECONDS = 150.0, 25.0  # of the full stage's ten minutes
LINES = 40  # of the output that are kept of what failed


@dataclass(frozen=True)
class Outcome:
    """`text`: the end of what a program that failed has printed, or why it did not run."""

    name: str
    state: str
    seconds: float = 0.0
    text: str = ""


def run(name: str, command: list[str], timeout: float, environment: dict | None = None) -> Outcome:
    start = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
        )
        code, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        # Bytes here, whatever `text` says.
        output = (error.stdout or b"").decode(errors="replace")
        code, output = 124, f"{output}\nstopped after {timeout:.0f} s"
    except OSError as error:
        code, output = 127, str(error)
    lines = output.strip().splitlines()
    kept = lines[-1:] if code == 0 else lines[-LINES:]
    state = PASSED if code == 0 else FAILED
    return Outcome(name, state, time.monotonic() - start, "\n".join(kept))


def product_tests(budget: Budget) -> Outcome:
    """`pytest -m cuda tests/cuda`. Tests that were skipped on a machine with a GPU are said."""
    name = "pytest -m cuda tests/cuda"
    if not budget.has_time_for(name, 10):
        return Outcome(name, SKIPPED, text="no time was left")
    try:
        import pytest  # noqa: F401
    except ImportError:
        return Outcome(name, SKIPPED, text="pytest is not installed (pip install 'mlp_ext[test]')")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "cuda",
        "tests/cuda",
        "-q",
        "-rs",
        "--tb=short",
    ]
    return run(name, command, min(PYTEST_SECONDS, budget.left))


def find_sanitizer() -> str | None:
    """compute-sanitizer of PATH, of the toolkit, or of pip's packages."""
    name = "compute-sanitizer"
    toolkits = [os.environ.get("CUDA_HOME", ""), os.environ.get("CUDA_PATH", ""), "/usr/local/cuda"]
    folders = [Path(home) / part for home in toolkits if home for part in ("bin", name)]
    packages = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    folders += [path.parent for path in packages.glob(f"**/{name}") if path.is_file()]
    return shutil.which(name) or next(
        (found for folder in folders if (found := shutil.which(name, path=str(folder)))), None
    )


def sanitizer(budget: Budget, tools: tuple[str, ...] = TOOLS) -> list[Outcome]:
    """Each tool over small_shapes.py; an error of a kernel is a failure of its tool.

    PyTorch's caching allocator hides reads past the end of a tensor and of what is freed, so it is
    off; no graph can be recorded without it, so TrainStep runs under racecheck and synccheck.
    """
    program = find_sanitizer()
    if program is None:
        text = "compute-sanitizer was not found (PATH, CUDA_HOME, pip's nvidia packages)"
        return [Outcome(f"compute-sanitizer {tool}", SKIPPED, text=text) for tool in tools]
    made = []
    for tool in tools:
        name = f"compute-sanitizer {tool}"
        if not budget.has_time_for(name, 15):
            made.append(Outcome(name, SKIPPED, text="no time was left"))
            continue
        caching = tool in ("racecheck", "synccheck")
        command = [program, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
        command += [sys.executable, "-m", "benchmarks.gpu.small_shapes"]
        command += ["--steps"] * caching
        environment = {} if caching else {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        outcome = run(name, command, min(TOOL_SECONDS, budget.left), environment)
        made.append(_with_summary(outcome))
    return made


def _with_summary(outcome: Outcome) -> Outcome:
    """What a tool prints last is its summary; a failure without one is no finding of the tool's."""
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", outcome.text)
    text = outcome.text if summary or outcome.state == PASSED else f"no summary:\n{outcome.text}"
    return Outcome(outcome.name, outcome.state, outcome.seconds, text)
