"""benchmarks/gpu without a GPU: every suite runs once on the CPU in its place, on tiny shapes. What
only a GPU can show is in benchmarks/gpu/device.py, mma.py and cublaslt.py."""

import os

import pytest
import torch
from cpu_in_place_of_gpu import AMPLE, SHAPE, TINY, Cpu, faulty, timed

from benchmarks.gpu import (
    adam,
    ceilings,
    correctness,
    layers,
    losses,
    ops,
    small_shapes,
    steps,
)
from benchmarks.gpu.budget import Budget
from benchmarks.gpu.cases import failures, run
from benchmarks.harness import OWN


def all_measured(records):
    assert records and not [(r.case, r.competitor, r.note) for r in records if r.note]
    assert not failures(records)
    return {record.case for record in records}


# ---- the suites


def test_layers():
    cpu, records = timed(lambda d: layers.linear_cases(d, [SHAPE]))
    names = all_measured(records)
    assert len(names) == 2 * len(layers.PRECISIONS)
    assert "linear_relu bfloat16 5x6x7 forward+backward" in names
    forward = {r.competitor for r in records if r.case == "linear_relu float32 high 5x6x7 forward"}
    assert forward == {"torch", "torch.compile", "cuBLASLt epilogue", "mlp_ext"}
    assert cpu.recorded == len(records) and cpu.released == len(names)
    assert torch.get_float32_matmul_precision() == "highest"


def test_both_routes_compete_where_there_is_a_choice(monkeypatch):
    monkeypatch.setattr(layers, "LEAST_LIBRARY_WORK", 1)
    seen = []

    def linear_relu(*tensors):
        seen.append(os.environ.get("MLP_EXT_FORCE"))
        return layers.plain(*tensors)

    monkeypatch.setattr(layers.mlp_ext.functional, "linear_relu", linear_relu)
    cases = ["float32 highest", "bfloat16"]
    _, records = timed(lambda d: layers.linear_cases(d, [SHAPE], cases))
    all_measured(records)
    routes = {(r.case, r.competitor) for r in records if r.role == OWN}
    case = "linear_relu bfloat16 5x6x7 forward"
    both = [case, f"{case}+backward"]
    assert routes == {(each, name) for each in both for name in layers.ROUTES}
    assert set(seen) == {None, *layers.ROUTES.values()}
    assert "MLP_EXT_FORCE" not in os.environ


def test_layers_do_their_work_under_the_precision_of_the_case(monkeypatch):
    seen = []
    monkeypatch.setattr(
        layers, "plain", lambda *t: seen.append(torch.get_float32_matmul_precision()) or t[0].relu()
    )
    timed(lambda d: layers.linear_cases(d, [(4, 4, 4)], ["float32 high"]))
    assert set(seen) == {"high"}


def test_only_the_whole_grid_is_autotuned():
    cpu = Cpu()
    names = [c.case.name for c in layers.linear_cases(cpu)]
    autotuned = [name for name in names if "autotune" in name]
    assert len(autotuned) == len(layers.PRECISIONS) and names[-len(autotuned) :] == autotuned
    assert len(set(names)) == len(names)


def test_stacks():
    _, records = timed(lambda d: layers.stack_cases(d, [4], rows=6))
    assert all_measured(records) == {
        "mlp 4 x 4 layers / 6 forward",
        "mlp 4 x 4 layers / 6 forward+backward",
    }


def test_losses():
    _, records = timed(lambda d: losses.cases(d, [(4, 3)], [(5, 2)]))
    assert all_measured(records) == {
        "cross_entropy 4 x 3", "bce_with_logits 5 x 2", "mse_loss 5 x 2", "smooth_l1_loss 5 x 2",
    }  # fmt: skip


def test_adam():
    _, records = timed(lambda d: adam.cases(d, [0.0001, 0.0002]))
    assert len(all_measured(records)) == 4
    assert sum(torch.Size(s).numel() for s in adam.shapes_of(16)) == pytest.approx(16e6, rel=0.01)


def test_steps(monkeypatch):
    monkeypatch.setattr(steps, "WIDE", 6)
    cpu, records = timed(lambda d: steps.cases(d, [([3, 4, 2], 5), ([3, 4, 2], 6)]))
    records = [r for r in records if r.competitor != "torch in one graph"]
    assert all_measured(records) == {
        "step 3-4-2 / 5", "step 3-4-2 / 6", "step 3-4-2 / 6 float32 high",
        "step 3-4-2 / 6 bfloat16",
    }  # fmt: skip
    assert {options["mode"] for options in cpu.compiled_with} == {"reduce-overhead"}


def test_the_one_graph_is_a_training_step(monkeypatch):
    adam_class = torch.optim.Adam
    monkeypatch.setattr(
        torch.optim, "Adam", lambda *a, capturable, **options: adam_class(*a, **options)
    )
    loss = steps.in_one_graph(Cpu(), [3, 4, 2], 5)()
    assert loss.shape == () and float(loss.detach()) > 0


def test_wall_and_sets():
    """Times are of one set of inputs."""
    clocks = []

    class Counting(Cpu):
        def gpu_seconds(self, call, calls):
            clocks.append("gpu")
            return 3.0 * calls

        def wall_seconds(self, call, calls):
            clocks.append("wall")
            return 5.0 * calls

    cpu = Counting()
    records = run(cpu, adam.cases(cpu, [0.0001]), TINY, Budget(AMPLE))
    by_case = {record.case.partition(", ")[2]: record.median_us for record in records}
    assert by_case == {"wall": 5e6, "graph": 1.5e6} and set(clocks) == {"gpu", "wall"}


def test_ceilings():
    figures = ceilings.measured(Cpu(), TINY, Budget(AMPLE), sizes=(8,))
    assert [f.case for f in figures] == ["copy", *(f"cuBLAS {kind} 8" for kind in ceilings.KINDS)]
    assert all(figure.value > 0 for figure in figures)


@pytest.fixture(autouse=True)
def small_copy(monkeypatch):
    copy = ceilings.copy_bandwidth
    monkeypatch.setattr(ceilings, "copy_bandwidth", lambda d, effort: copy(d, effort, size=4096))


# ---- correctness


def test_every_op_is_right():
    checks = correctness.checked(Cpu(), [(7, 33, 17)], Budget(AMPLE))
    assert [check for check in checks if not check.passed] == []
    names = {check.name.split()[0] for check in checks}
    assert names >= {"linear", "mlp", "cross_entropy", "mse_loss", "clip_grad_norm_", "Adam"}
    assert correctness.float32_error(Cpu(), [(7, 33, 17)]).value < 2


@pytest.mark.parametrize("shape", ops.GRID, ids=str)
def test_the_grid_is_of_ops(shape):
    made = list(ops.ops(shape, torch.float32))
    assert len({op.name for op in made}) == len(made) >= 25


@pytest.mark.parametrize(
    ("op", "note"),
    [
        (faulty(), ""),
        (faulty(scale=1.001), "wrong"),
        (faulty(scale=float("nan")), "wrong"),
        (faulty(noise=1e-7), "differs from run to run"),
        (ops.Op("linear", None, None, (torch.ones(1),)), "TypeError"),
    ],
    ids=["right", "wrong", "nan", "unsteady", "broken"],
)
def test_faults_are_found(op, note):
    check = correctness.check(op, Cpu(), "here")
    assert note in check.note and check.passed == (note == "") and check.name == "linear here"


def test_small_shapes_runs(capsys):
    assert small_shapes.main(["--device", "cpu", "--steps"]) == 0
    assert int(capsys.readouterr().out.split()[0]) > 50
