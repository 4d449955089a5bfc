"""The parts of benchmarks/gpu that ask the hardware or start programs, without either."""

import os
import subprocess
import sys

import pytest
import torch
from cpu_in_place_of_gpu import Cpu
from made_up_figures import ROOT  # noqa: F401  (puts the checkout on sys.path)

from benchmarks.gpu import cublaslt, mma, programs, questions
from benchmarks.gpu.budget import Budget

AMPLE = 1e6


# ---- questions


def test_model_of_the_tensor_cores_truncates():
    one, tiny = torch.ones(1, 16, 8), torch.full((1, 8, 8), 2.0**-13)
    tiny[:, 1:] = 0  # 2^13 + 2^-13 needs 27 bits
    for sign in (1, -1):
        total = mma.modelled(sign * one, tiny, torch.full((1, 16, 8), sign * 2.0**13))
        assert torch.equal(total, torch.full((1, 16, 8), sign * 2.0**13))
    # 1 + (2^-24 + 2^-25): the nearest is above, the truncated is 1.
    tiny = torch.zeros(1, 8, 8)
    tiny[:, 0], tiny[:, 1] = 2.0**-24, 2.0**-25
    assert torch.equal(mma.modelled(one, tiny, torch.ones(1, 16, 8)), torch.ones(1, 16, 8))
    a, b, _ = mma.operands(3)
    assert torch.equal(a, mma.as_tf32(a)) and a.shape == (3, 16, 8) and b.shape == (3, 8, 8)


def test_questions_that_cannot_be_asked_say_why():
    figures = questions.rates(Cpu(), [])
    *lacking, relu, gates = figures
    assert [figure.value for figure in lacking] == [None, None]
    assert all(figure.note for figure in lacking)
    assert relu.value == gates.value == 100  # of the CPU's, which is asked here
    with pytest.raises(cublaslt.Lacking, match="libcublasLt"):
        cublaslt.offered()
    assert questions.epilogues() == "Lacking: torch has loaded no libcublasLt"


# ---- other programs


def test_outcomes_of_programs(tmp_path):
    passed = programs.run("x", [sys.executable, "-c", "print('one'); print('two')"], 60)
    assert (passed.state, passed.text) == (programs.PASSED, "two")
    failed = programs.run("x", [sys.executable, "-c", "print('why'); raise SystemExit(3)"], 60)
    assert (failed.state, failed.text) == (programs.FAILED, "why")
    late = programs.run("x", [sys.executable, "-c", "import time; time.sleep(60)"], 0.5)
    assert late.state == programs.FAILED and "stopped after" in late.text
    assert programs.run("x", [str(tmp_path / "none")], 60).state == programs.FAILED


def test_a_missing_sanitizer_is_said(monkeypatch):
    monkeypatch.setattr(programs, "find_sanitizer", lambda: None)
    outcomes = programs.sanitizer(Budget(AMPLE))
    assert {o.state for o in outcomes} == {programs.SKIPPED} and len(outcomes) == 4
    assert all("compute-sanitizer was not found" in o.text for o in outcomes)


def test_the_sanitizer_that_is_found_is_run(monkeypatch, tmp_path):
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\necho "$2 $PYTORCH_NO_CUDA_MEMORY_CACHING"\n[ $2 != racecheck ]\n')
    tool.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    outcomes = programs.sanitizer(Budget(AMPLE), ("memcheck", "racecheck"))
    assert [(o.state, o.text.strip()) for o in outcomes] == [
        (programs.PASSED, "memcheck 1"),
        (programs.FAILED, "no summary:\nracecheck"),
    ]


def test_the_tests_of_cuda_are_run_as_a_program(monkeypatch):
    commands = []
    monkeypatch.setattr(programs, "run", lambda name, command, timeout: commands.append(command))
    programs.product_tests(Budget(AMPLE))
    assert commands[0][1:6] == ["-m", "pytest", "-m", "cuda", "tests/cuda"]


def test_without_what_it_needs_nothing_is_run(tmp_path):
    """Exit code 2; 1 would say that something of ours is wrong."""
    (tmp_path / "rich.py").write_text("raise ImportError('no rich here')")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "Nothing was run: no rich here" in done.stderr, done.stderr
