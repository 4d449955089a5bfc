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
_OURS = ["--kernel-name", "kns=mlp_ext"]
TOOLS = {
    "memcheck": [*_OURS, "--report-api-errors", "no"],
    "racecheck": _OURS,
    "synccheck": _OURS,
    "initcheck": [],
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
    for tool, options in ({"dry run": []} if dry else TOOLS).items():
        command = module("sanitizer", *(["--device", "cpu"] if dry else []))
        environment = {}
        if not dry:
            head = [program, "--tool", tool, "--error-exitcode", "9", *options]
            command = [*head, "--target-processes", "application-only", *command]
        if tool in ("memcheck", "initcheck"):
            environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        log = folder / f"sanitizer-{tool.replace(' ', '-')}.log"
        children[tool] = Child(command, log, environment), log
    for tool, (child, log) in children.items():
        ending = child.wait(seconds)
        # Cut off without a word of the tool's is not wrong; it says how far it came.
        state = "passed" if ending.code == 0 else "cut off" if ending.code is None else "FAILED"
        output = log.read_text(errors="replace")
        said = [line for line in output.splitlines() if line.startswith("=====")][1:]
        if re.search(r"SUMMARY: [1-9]|^=+ (Invalid|Error|Uninit|Barrier)", output, re.MULTILINE):
            state = "FAILED"
        text = "\n".join(said[:12]) if state == "FAILED" and said else ending.text[-200:]
        yield {
            "name": f"compute-sanitizer {tool}",
            "state": state,
            "seconds": time.monotonic() - start,
            "text": " ".join(filter(None, [ending.why, text])),
        }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.sanitizer")
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args(arguments).device
    import torch

    from . import correctness

    number = 0
    for case in correctness.smoke_cases():
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
