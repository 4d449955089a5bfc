"""compute-sanitizer over every kernel of ours, on the smallest shapes. As a program
(python -m benchmarks.gpu.sanitizer) it is what the tools watch: the ops of the smoke check, ours
alone, and nothing is compared."""

import argparse
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from .child import Child, module

# Kernels of ours alone; but initcheck has to see who has written what they read.
_OURS = ["--target-processes", "application-only", "--kernel-name", "kns=mlp_ext"]
TOOLS = {
    "memcheck": [*_OURS, "--report-api-errors", "no"],
    "racecheck": _OURS,
    "synccheck": _OURS,
    "initcheck": _OURS[:2],
}


def find() -> str | None:
    """compute-sanitizer of PATH or of the toolkit."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [os.path.join(home, "bin") for home in homes if home]
    path = os.pathsep.join([os.environ.get("PATH", ""), *folders])
    return shutil.which("compute-sanitizer", path=path)


def run(folder: Path, seconds: float, dry: bool = False) -> Iterator[dict]:
    """All tools at a time, because most of what each takes is of the CPU.

    PyTorch's caching allocator hides reads past the end of a tensor and of what is freed, so it is
    off; no graph can be recorded without it, so TrainStep runs under racecheck and synccheck.
    """
    program, start = find(), time.monotonic()
    if program is None and not dry:
        yield {"name": "compute-sanitizer", "state": "skipped", "text": "it was not found"}
        return
    children = {}
    for tool, options in ({"dry-run": []} if dry else TOOLS).items():
        environment = {"OMP_NUM_THREADS": "2"}
        if tool in ("memcheck", "initcheck"):
            environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
        head = [] if dry else [program, "--tool", tool, "--error-exitcode", "9", *options]
        command = [*head, *module("sanitizer", *(["--device", "cpu"] if dry else []))]
        children[tool] = Child(command, folder / f"sanitizer-{tool}.log", environment)
    try:
        for tool, child in children.items():
            state, text = _judged(child, seconds)
            yield {"name": f"compute-sanitizer {tool}", "state": state, "text": text,
                   "seconds": time.monotonic() - start}  # fmt: skip
    finally:
        for child in children.values():
            child.stop()


def _judged(child: Child, seconds: float) -> tuple[str, str]:
    """(state, what to say). Cut off without a word of the tool's is not wrong: it says how far it
    came."""
    ending = child.wait(seconds)
    output = child.log.read_text(errors="replace")
    # Of a tool that was stopped, "Error: Target application ..." and its summary say no more.
    found = re.search(r"^=+ (Invalid|Uninit|Barrier|Diverg|Error: Race)", output, re.MULTILINE)
    if found or ending.code or (ending.code == 0 and re.search(r"SUMMARY: [1-9]", output)):
        said = [line for line in output.splitlines() if line.startswith("=====")][1:12]
        return "FAILED", "\n".join(said) or f"{ending.why}\n{ending.text}"
    calls = re.findall(r"^\d+ calls, .*", output, re.MULTILINE)
    return "passed" if ending.code == 0 else "cut off", " ".join([ending.why, *calls[-1:]]).strip()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.sanitizer")
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args(arguments).device
    import torch

    from . import correctness

    number = 0
    for case in correctness.smoke_cases(tiny=device == "cpu"):
        for op in case.ops():
            if op.records and os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING"):
                continue
            with case.settings():
                correctness.results(op.ours, op, op.tensors_on(torch.device(device)))
            number += 1
        print(f"{number} calls, the last {case.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
