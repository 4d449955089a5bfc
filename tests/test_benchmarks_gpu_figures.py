"""What benchmarks/gpu makes of figures: predictions beside them, verdicts, tables; its budget."""

import io
import json
import math

import pytest
from cpu_in_place_of_gpu import Cpu
from made_up_figures import fake_result
from rich.console import Console

from benchmarks.gpu import adam, ceilings, environment, layers, losses, report, stages, steps
from benchmarks.gpu.budget import Budget
from benchmarks.gpu.correctness import Check
from benchmarks.gpu.figures import Figure, as_json, joined, of_records
from benchmarks.gpu.predictions import ESTIMATE, GOAL, PREDICTIONS, Prediction
from benchmarks.gpu.programs import FAILED, SKIPPED, Outcome
from benchmarks.records import records_of


@pytest.mark.parametrize(
    ("prediction", "value", "verdict"),
    [
        (("x", "y", 2.0, None, GOAL), 2.0, "met"),
        (("x", "y", 2.0, None, GOAL), 1.99, "MISSED"),
        (("x", "y", None, 2.0, GOAL), 2.1, "MISSED"),
        (("x", "y", 2.0, 3.0, ESTIMATE), 1.9, "lower"),
        (("x", "y", 2.0, 3.0, ESTIMATE), 3.1, "higher"),
        (("x", "y", 2.0, 3.0, ESTIMATE), 2.5, "as estimated"),
        (("x", "y", 100.0, 100.0, ESTIMATE), 91.0, "as estimated"),
        (("x", "y", 100.0, 100.0, ESTIMATE), 89.0, "lower"),
        (("x", "y", 2.0, 3.0, ESTIMATE, "H200"), 2.5, "for H200"),
    ],
)
def test_verdicts(prediction, value, verdict):
    assert Prediction(*prediction).verdict(value, "NVIDIA H100 80GB HBM3") == verdict


def test_a_prediction_says_something():
    with pytest.raises(ValueError, match="no prediction"):
        Prediction("x", "y", None, None, GOAL)
    with pytest.raises(ValueError, match="no prediction"):
        Prediction("x", "y", 1.0, None, "hope")


def test_figures_stand_beside_each_of_their_predictions():
    known = [
        Prediction("a", "us", 1.0, 2.0, ESTIMATE, why="one kernel"),
        Prediction("a", "us", 3.0, 4.0, ESTIMATE, why="the other"),
        Prediction("b", "us", 1.0, None, GOAL),
    ]
    figures = [Figure("a", "us", 3.5), Figure("c", "us", 7.0), Figure("d", "us", None, "no memory")]
    rows = joined(figures, "A GPU", known)
    assert [(row.name[0], row.verdict) for row in rows] == [
        ("a", "higher"), ("a", "as estimated"), ("c", ""), ("d", "not measured"),
        ("b", "not measured"),
    ]  # fmt: skip
    read = json.loads(json.dumps(as_json(rows)))
    assert read[1]["value"] == 3.5 and read[1]["prediction"]["why"] == "the other"
    assert read[2]["prediction"] is None and read[3]["note"] == "no memory"
    assert read[4]["value"] is None and read[4]["prediction"]["source"] == GOAL


def test_every_prediction_is_of_a_figure_that_is_measured():
    cpu = Cpu()
    cases = [
        *layers.linear_cases(cpu), *layers.stack_cases(cpu), *losses.cases(cpu),
        *adam.cases(cpu), *steps.cases(cpu),
    ]  # fmt: skip
    measured = {
        ("float32 error", "x cuBLAS SGEMM's"),
        ("mma.sync truncates", "% of bits as modelled"),
        ("cuBLASLt's ReLU", "% of NaN kept"),
        ("cuBLASLt's DRELU", "% of closed gates that give 0"),
    }
    measured |= {("mma.sync TF32", "% of cuBLAS TF32")}
    for kind in ceilings.KINDS:
        measured |= {(f"cuBLAS {kind} {size}", "TFLOP/s") for size in ceilings.SIZES}
    for each in cases:
        case = each.case
        measured |= {(case.name, f"x {rival}") for rival in case.competitors}
        measured |= {(case.name, "TFLOP/s")} if case.flops else set()
        measured |= {(case.name, "% of copy")} if case.bytes else set()
    assert {(p.case, p.measure) for p in PREDICTIONS} - measured == set()


def test_figures_of_records():
    times = {"torch": 2e-3, "mlp_ext": 1e-3, "fast": 5e-4}
    result = fake_result(case="c", times=times, notes={"late": "failed: no"}, flops=4e9, bytes=1e9)
    figures = {f.measure: f for f in of_records(records_of(result, {}), copy_gbs=2000.0)}
    assert {name: figure.value for name, figure in figures.items()} == {
        "x torch": 2.0, "x fast": 0.5, "x late": None, "us": pytest.approx(1000),
        "TFLOP/s": pytest.approx(4), "% of copy": pytest.approx(50),
    }  # fmt: skip
    assert figures["x late"].note == "failed: no"


def test_the_budget_says_what_it_left_out():
    now = [0.0]
    budget = Budget(10, lambda: now[0])
    assert budget.has_time_for("a") and budget.has_time_for("b", 9)
    assert not budget.has_time_for("c", 11) and budget.left_out == ["c"]
    now[0] = 9.0
    assert budget.has_time_for("d") and budget.left == 1
    now[0] = 10.0
    assert not budget.has_time_for("e")
    assert budget.summary() == "The 10 s were spent; left out (2): c, e"
    assert Budget(10, lambda: 0).summary() == "Finished with 10 of 10 s to spare."


def test_what_is_wrong_and_what_is_slower_is_printed():
    result = fake_result("step", "step 1-1 / 1", {"torch": 1e-3, "mlp_ext": 2e-3, "fast": 5e-4})
    findings = stages.Findings(
        "full",
        {"gpu": "A GPU", "compute_capability": "9.0", "torch": "2", "commit": "abc", "date": "d"},
        figures=[Figure("copy", "GB/s", 3000.0), Figure("float32 error", "x cuBLAS SGEMM's", 2.5)],
        checks=[Check("linear relu", 1e-2, 1e-7, False, "wrong", False), Check("m", 0, 0, True)],
        records=records_of(result, {}),
        programs=[
            Outcome("pytest", FAILED, 3.0, "1 failed"),
            Outcome("memcheck", SKIPPED, 0, "no"),
        ],
        epilogues={"float32": ["RELU_BIAS"], "fp16": []},
        errors=["grid: RuntimeError: no"],
    )
    console = Console(width=160, record=True, file=io.StringIO())
    report.print_all(console, findings, "left out (1): layers")
    printed = console.export_text()
    for words in (
        "1 of 2 within", "linear relu: error 1.00e-02, PyTorch 1.00e-07, wrong", "MISSED",
        "pytest: FAILED (3 s)", "1 failed", "memcheck: skipped", "in float32: RELU_BIAS",
        "in fp16: none", "Where ours is slower", "0.25", "grid: RuntimeError: no",
        "left out (1): layers", "not measured",
    ):  # fmt: skip
        assert words in printed, words
    assert findings.failed


def test_json_has_no_infinities(tmp_path):
    """A check that could not run has no finite error; strict readers of JSON take no Infinity."""
    check = Check("x", math.inf, math.nan, False, "TypeError: no", False)
    report.write_json(tmp_path / "f.json", stages.Findings("smoke", {"gpu": "x"}, checks=[check]))

    def refuse(name):
        raise AssertionError(name)

    read = json.loads((tmp_path / "f.json").read_text(), parse_constant=refuse)
    assert (read["checks"][0]["error"], read["checks"][0]["torch_error"]) == ("inf", "nan")


def test_the_build_is_described():
    """Lines of `python -m mlp_ext` about the CUDA half, without their label."""
    lines = environment.build_lines()
    assert lines and lines[0].startswith(("not built: ", "built for CUDA "))
