"""Threads that find no core to run on: what is worked out does not depend on it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from train_twins import net

import mlp_ext
from benchmarks.compiler import NoCompiler, compile_to, find_compiler

HERE = Path(__file__).parent
BUSY = "while True: pass"


def test_crowding_and_barrier(tmp_path):
    try:
        find_compiler()
    except NoCompiler as reason:
        pytest.skip(str(reason))
    program = compile_to(
        tmp_path / "check", "-std=c++20", "-O1", "-pthread", HERE / "crowding_check.cpp"
    )
    finished = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stdout


def trained(steps):
    torch.manual_seed(0)
    model = net((64, 64, 64, 4), dtype=torch.float32)
    step = mlp_ext.TrainStep(model, F.cross_entropy, mlp_ext.optim.Adam(model.parameters()))
    fused = mlp_ext.fuse(net((64, 64, 64, 4), dtype=torch.float32))
    x, y = torch.randn(256, 64), torch.randint(4, (256,))
    for _ in range(steps):
        step(x, y)
    F.cross_entropy(fused(x), y).backward()
    return [p.detach() for p in model.parameters()] + [p.grad for p in fused.parameters()]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_the_same_bits_on_busy_cores(two_threads):
    """Each region on two threads or, for a while, as the same two tasks on one."""
    steps = 300
    quiet = trained(steps)
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(2 * os.cpu_count())]
    try:
        crowded = trained(steps)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    for a, b in zip(quiet, crowded, strict=True):
        assert torch.equal(a, b)
