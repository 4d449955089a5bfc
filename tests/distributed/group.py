"""Starts the processes of a group, waits for them with a limit, and leaves none behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
LIMIT = 240  # seconds; they need about 10 on two idle cores
# gloo looks the host's name up unless it is told which interface to take, and some have no name.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def run_processes(commands: list[list[str]], folder: Path, **environment: str) -> None:
    """Runs the commands at the same time in `folder`; the output of number i goes to i.log.

    When one fails, or the time is up, all are ended with the processes that they have started.
    """
    running = []
    try:
        for i, command in enumerate(commands):
            with open(folder / f"{i}.log", "w") as log:
                running.append(
                    subprocess.Popen(
                        command,
                        cwd=folder,
                        env=ENVIRONMENT | environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        stdin=subprocess.DEVNULL,
                        start_new_session=True,
                    )
                )
        deadline = time.monotonic() + LIMIT
        while any(process.poll() is None for process in running):
            if time.monotonic() > deadline or any(process.poll() for process in running):
                break
            time.sleep(0.05)
    finally:
        for process in running:
            end(process)


def end(process: subprocess.Popen) -> None:
    """By SIGTERM first: torchrun then ends its workers, which are in sessions of their own."""
    for name in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, name)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                pass


class Group:
    """What two processes that have run the checks of `module` say of each."""

    def __init__(self, module: str, folder: Path, backend="gloo", **environment: str) -> None:
        self.folder = folder
        command = [sys.executable, str(HERE / "worker.py")]
        commands = [[*command, str(rank), "2", module, backend] for rank in (0, 1)]
        run_processes(commands, folder, **environment)

    def results(self, name: str) -> list:
        """The check's result on each rank; fails the test if a rank has none."""
        files = [self.folder / f"{name}.{rank}.pt" for rank in (0, 1)]
        found = [torch.load(file, weights_only=True) for file in files if file.exists()]
        if len(found) < 2 or any(isinstance(result, str) for result in found):
            logs = "\n".join((self.folder / f"{rank}.log").read_text() for rank in (0, 1))
            pytest.fail(f"{name} has no result on each rank\n{logs}", pytrace=False)
        return found
