"""What benchmarks/gpu makes of what it finds: predictions beside it, wrong results, lost races."""

import pytest
import torch
from made_up_figures import ROOT  # noqa: F401  (puts the checkout on sys.path)

from benchmarks.gpu import correctness, device, mma, rates, table, timings
from benchmarks.gpu.ops import Op
from benchmarks.gpu.predictions import ESTIMATE, GOAL, PREDICTIONS, Prediction
from benchmarks.gpu.results import Results, failures


@pytest.mark.parametrize(
    ("low", "high", "source", "value", "verdict"),
    [
        (2.0, None, GOAL, 2.0, "met"),
        (2.0, None, GOAL, 1.99, "MISSED"),
        (None, 2.0, GOAL, 2.1, "MISSED"),
        (2.0, 3.0, ESTIMATE, 1.9, "lower"),
        (2.0, 3.0, ESTIMATE, 3.1, "higher"),
        (100.0, 100.0, ESTIMATE, 91.0, "as estimated"),
        (100.0, 100.0, ESTIMATE, 89.0, "lower"),
    ],
)
def test_verdicts(low, high, source, value, verdict):
    assert Prediction("x", "y", low, high, source).verdict(value) == verdict


class Full(device.Cpu):
    """The shapes of a GPU; nothing of it is run."""

    tiny = False


def test_every_prediction_is_of_a_figure_that_is_measured():
    measured = {
        ("float32 error", "x cuBLAS SGEMM's"), ("mma.sync TF32", "% of cuBLAS TF32"),
        ("mma.sync truncates", "% of bits as modelled"), ("cuBLASLt's ReLU", "% of NaN kept"),
        ("cuBLASLt's DRELU", "% of closed gates that give 0"),
    }  # fmt: skip
    measured |= {(f"cuBLAS {k} {size}", "TFLOP/s") for k in rates.KINDS for size in rates.SIZES}
    items = list(timings.items(Full()))
    for case in [item.run.__self__.case for item in items if hasattr(item.run, "__self__")]:
        measured |= {(case.name, f"x {rival}") for rival in case.competitors}
        measured |= {(case.name, "TFLOP/s")} if case.flops else set()
        measured |= {(case.name, "% of copy")} if case.bytes else set()
    assert {(p.case, p.measure) for p in PREDICTIONS} - measured == set()
    assert len({item.name for item in items}) == len(items)


def times(results, case, path="", **us):
    roles = {"torch": "baseline", "mlp_ext": "ours"}
    for name, each in us.items():
        role = roles.get(name, "own" if name.startswith("mlp_ext") else "peer")
        of = {"own": name.removeprefix("mlp_ext_"), "ours": path}.get(role, "")
        results.add("time", case=case, competitor=name, role=role, us=each, path=of, flops=4e9,
                    bytes=1e9, note="" if each else "no")  # fmt: skip


def test_figures_paths_and_lost_races(tmp_path):
    results = Results(tmp_path)
    results.add("figure", case="copy", measure="GB/s", value=2000.0)
    times(results, "a", torch=4.0, mlp_ext_one=2.0, mlp_ext_two=8.0, mlp_ext=2.0)
    times(results, "b", torch=1.0, late=None, mlp_ext=1000.0, path="three")
    times(results, "c", torch=1.0, mlp_ext=1.01, path="four")
    figures = {(f.case, f.measure): f.value for f in table.figures(results)}
    assert figures["a", "x torch"] == 2 and figures["a", "us"] == 2
    assert figures["b", "TFLOP/s"] == pytest.approx(4) and ("b", "x late") not in figures
    assert figures["b", "% of copy"] == pytest.approx(50)
    wins = {path: (wins, of) for path, wins, of, *_ in table.paths(results)}
    assert wins == {"one": (1, 1), "two": (0, 1), "three": (0, 1), "four": (1, 1)}
    text = table.whole(results)
    assert "never win: three, two" in text and "Where ours is slower (2)" in text
    assert not failures(results)
    times(results, "d", torch=1.0, mlp_ext=None)
    assert failures(results) == ["d: mlp_ext: no"]
    for i in range(2000):
        results.add("figure", case=f"{i}", measure="us", value=1.0)
        results.add("left_out", phase="timings", item=f"case {i}")
    assert "case 5" in table.summary(results) and len(table.summary(results)) < 12_000


@pytest.mark.parametrize(
    ("function", "note"),
    [
        (torch.nn.functional.linear, ""),
        (lambda *t: torch.nn.functional.linear(*t) * 1.001, "wrong"),
        (lambda *t: torch.nn.functional.linear(*t) * torch.nan, "wrong"),
        (lambda *t: torch.nn.functional.linear(*t) * (1 + 1e-6 * torch.rand(())), "differs"),
        (None, "TypeError"),
    ],
    ids=["right", "wrong", "nan", "unsteady", "broken"],
)
def test_faults_are_found(monkeypatch, function, note):
    tensors = tuple(torch.randn(s) for s in ((4, 3), (5, 3), (5,)))
    op = Op("linear", function, torch.nn.functional.linear, tensors)
    monkeypatch.setattr(correctness.Case, "ops", lambda case: [op])
    (found,) = correctness._checks(correctness.Case((4, 5, 3), torch.float32), device.Cpu())
    assert note in found["note"] and found["passed"] == (note == "")


def test_model_of_the_tensor_cores_truncates():
    one, tiny = torch.ones(1, 16, 8), torch.zeros(1, 8, 8)
    tiny[:, 0] = 2.0**-13  # 2^13 + 2^-13 needs 27 bits
    for sign in (1, -1):
        total = mma.modelled(sign * one, tiny, torch.full((1, 16, 8), sign * 2.0**13))
        assert torch.equal(total, torch.full((1, 16, 8), sign * 2.0**13))
    # 1 + (2^-24 + 2^-25): the nearest is above, the truncated is 1.
    tiny[:, 0], tiny[:, 1] = 2.0**-24, 2.0**-25
    assert torch.equal(mma.modelled(one, tiny, torch.ones(1, 16, 8)), torch.ones(1, 16, 8))
    a, b, _ = mma.operands(3)
    assert torch.equal(a, mma.as_tf32(a)) and a.shape == (3, 16, 8) and b.shape == (3, 8, 8)
