"""`python -m benchmarks.gpu` without a GPU: a whole stage with the CPU in its place, over tiny
shapes, and the command line."""

import json
import subprocess
import sys
from functools import partial

import pytest
import torch
from cpu_in_place_of_gpu import SHAPE, TINY, Cpu, faulty, timed
from made_up_figures import ROOT

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import (
    adam,
    ceilings,
    correctness,
    device,
    environment,
    layers,
    losses,
    programs,
    stages,
    steps,
)
from benchmarks.gpu.cases import failures
from benchmarks.gpu.figures import of_records
from benchmarks.harness import OURS

# ---- a whole stage


@pytest.fixture
def tiny_stages(monkeypatch):
    """The stages as they are, over tiny shapes, without other programs."""
    monkeypatch.setattr(stages, "SMALL", [(3, 4, 5)])
    monkeypatch.setattr(stages, "GRID", [(3, 4, 5), (2, 2, 2)])
    monkeypatch.setattr(stages, "SMOKE", TINY)
    monkeypatch.setattr(stages, "FULL", TINY)
    monkeypatch.setattr(ceilings, "measured", partial(ceilings.measured, sizes=(8,)))
    for part, cases in {
        "adam": lambda d: adam.cases(d, [0.0001]),
        "steps": lambda d: steps.cases(d, [([3, 4, 2], 5)]),
        "losses": lambda d: losses.cases(d, [(4, 3)], []),
        "stacks": lambda d: layers.stack_cases(d, [4], rows=5),
        "layers": lambda d: layers.linear_cases(d, [SHAPE], ["float32 highest"]),
    }.items():
        for stage in stages.PARTS.values():
            if part in stage:
                monkeypatch.setitem(stage, part, stages._timing(cases))
    outcome = programs.Outcome("pytest", programs.PASSED, 1.0, "3 passed")
    monkeypatch.setattr(programs, "product_tests", lambda budget: outcome)
    monkeypatch.setattr(programs, "find_sanitizer", lambda: None)
    monkeypatch.setattr(environment, "build_lines", lambda: ["built for CUDA 13.0: sm_80"])


@pytest.mark.parametrize("stage", ["smoke", "full"])
def test_a_stage(stage, tiny_stages, tmp_path, capsys):
    paths = tmp_path / "a" / "figures.json", tmp_path / "b" / "table.txt"
    arguments = ["--stage", stage, "--json", str(paths[0]), "--table", str(paths[1])]
    assert command.main(arguments, Cpu) == 0
    printed, table = capsys.readouterr().out, paths[1].read_text()
    for words in ("A GPU", "Correctness", "Figures beside", "cuBLASLt's epilogues: not known"):
        assert words in printed and words in table
    found = json.loads(paths[0].read_text())
    assert found["machine"]["gpu"] == "A GPU" and found["machine"]["commit"]
    assert found["errors"] == found["left_out"] == [] and all(c["passed"] for c in found["checks"])
    figures = {(f["case"], f["measure"]): f for f in found["figures"]}
    assert figures["copy", "GB/s"]["value"] > 0
    assert figures["float32 error", "x cuBLAS SGEMM's"]["verdict"] == "met"
    assert figures["cuBLAS SGEMM 4096", "TFLOP/s"]["verdict"] == "not measured"
    suites = {record["suite"] for record in found["records"]}
    assert suites == (
        {"adam", "step"} | ({"losses", "stack", "linear"} if stage == "full" else set())
    )
    assert bool(found["programs"]) == (stage == "full")


def test_what_is_left_out_is_said(tiny_stages, capsys):
    assert command.main(["--seconds", "1e-9"], Cpu) == 0
    assert "left out (5): ceilings, correctness, questions, adam, steps" in capsys.readouterr().out


def test_a_part_that_breaks_is_an_error_and_the_others_run(tiny_stages, monkeypatch, capsys):
    def broken(run):
        raise RuntimeError("out of luck")

    monkeypatch.setitem(stages.PARTS["smoke"], "ceilings", broken)
    assert command.main(["--only", "ceilings", "adam"], Cpu) == 1
    printed = capsys.readouterr().out
    assert "ceilings: RuntimeError: out of luck" in printed and "Adam 0.0001 M" in printed


def test_wrong_results_and_failing_ours_are_errors(tiny_stages, monkeypatch):
    findings = stages.Findings("smoke", {})
    assert not findings.failed
    findings.checks.append(correctness.check(faulty(scale=2.0), Cpu()))
    assert findings.failed
    findings = stages.Findings("full", {}, programs=[programs.Outcome("x", programs.FAILED)])
    assert findings.failed
    monkeypatch.setattr(losses.mlp_ext.functional, "cross_entropy", None)
    _, records = timed(lambda d: losses.cases(d, [(4, 3)], []))
    assert stages.Findings("full", {}, records=records).failed
    figures = {(f.measure): f for f in of_records(records, None)}
    assert figures["x torch"].value is None and "TypeError" in figures["x torch"].note
    assert [r.competitor for r in failures(records)] == ["mlp_ext"] and records[-1].role == OURS


# ---- the command line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--stage", "full"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert "Nothing was run: torch" in done.stderr and "sees no NVIDIA GPU" in done.stderr


def test_a_build_without_kernels_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *_: False)
    assert "built without CUDA kernels" in device.missing()
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *_: True)
    assert device.missing() == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stage", "long"], "invalid choice"),
        (["--only", "grid"], "smoke has no part grid; expected ceilings"),
        (["--seconds", "0"], "positive"),
    ],
)
def test_bad_arguments(arguments, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments, Cpu)
    assert words in capsys.readouterr().err
