"""The benchmarks themselves: that they time what they say, and that what they race does the same
work. No timing is judged here."""

import gc
from types import SimpleNamespace

import pytest
import torch
from made_up_figures import CEILINGS, MACHINE, broken, fake_result, working

from benchmarks import __main__ as command
from benchmarks import ceilings, compiler, harness, peers, records, sweep
from benchmarks.harness import BASELINE, OURS, OWN, Case, Competitor, Effort, Unavailable
from benchmarks.suites import SUITES, cases_of

TINY = Effort(rounds=1, sample_s=1e-6, budget_s=1.0)


def unavailable():
    raise Unavailable("numpy2 is not installed")


# ---- the harness


def test_every_round_times_each_competitor_in_a_rotating_order():
    log = []
    names = ("a", "b", "c")
    case = Case("s", "c", {name: Competitor(working(log, name)) for name in names})
    result = harness.measure(case, Effort(rounds=3, sample_s=1e-9, budget_s=1.0))
    assert {len(timing.samples) for timing in result.timings.values()} == {3}
    # Warm-up is two calls each; then a sample is an untimed call and at least one timed one.
    starts = [name for i, name in enumerate(log) if i == 0 or log[i - 1] != name]
    assert starts[3:] == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    for timing in result.timings.values():
        low, high = timing.quartiles
        assert 0 < low <= timing.median <= high


def test_who_cannot_run_is_named_and_the_others_are_timed():
    competitors = {
        "ours": Competitor(working(), OURS),
        "missing": Competitor(unavailable),
        "broken": Competitor(broken, BASELINE),
    }
    result = harness.measure(Case("s", "c", competitors), TINY)
    assert list(result.timings) == ["ours"]
    assert result.notes == {
        "missing": "skipped: numpy2 is not installed",
        "broken": "failed: RuntimeError: out of luck",
    }
    ours, missing, _ = records.records_of(result, {})
    assert ours.median_us and ours.speedup is None and missing.median_us is None


def test_threads_and_garbage_collection_are_as_before():
    seen = []
    case = Case("s", "c", {"a": Competitor(lambda: lambda: seen.append(gc.isenabled()))}, threads=2)
    assert torch.get_num_threads() == 1
    assert harness.measure(case, TINY).threads == 2
    assert torch.get_num_threads() == 1 and gc.isenabled()
    assert seen[0] and not seen[-1]


@pytest.mark.parametrize(("round_s", "rounds"), [(0.01, 20), (0.1, 10), (1.0, 3), (100.0, 3)])
def test_slow_cases_get_fewer_rounds(round_s, rounds):
    assert Effort(rounds=20, sample_s=0.01, budget_s=1.0).rounds_for(round_s) == rounds


def test_the_runs_fit_their_time():
    """Compilation and calls longer than a sample come on top, hence half of what is allowed."""
    for full, effort, allowed in ((False, harness.SHORT, 180), (True, harness.FULL, 1200)):
        cases = [case for suite in SUITES for case in cases_of(suite, full)]
        assert effort.seconds(cases) < allowed / 2


# ---- the suites


@pytest.mark.parametrize("suite", SUITES)
def test_cases_can_be_built(suite):
    short, full = cases_of(suite, False), cases_of(suite, True)
    assert {case.name for case in short} <= {case.name for case in full}
    for case in full:
        assert case.suite == suite
        roles = [competitor.role for competitor in case.competitors.values()]
        assert roles.count(OURS) == roles.count(BASELINE) == 1
        assert set(roles) <= set(harness.ROLES)
        assert case.ceiling in ("", *ceilings.UNITS)
    assert len({case.name for case in full}) == len(full)


@pytest.mark.parametrize("suite", ["linear", "gemm", "losses", "stacks", "registration"])
def test_competitors_compute_the_same(suite):
    smallest = min(cases_of(suite, False), key=lambda case: case.flops)
    for case in {case.name: case for case in (smallest, cases_of(suite, False)[0])}.values():
        results = {name: c.make()() for name, c in case.competitors.items()}
        expected = results[case.named(BASELINE)]
        for result in results.values():
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("suite", "number"), [("optimizers", 3), ("rules", 6)])
def test_optimizers_make_the_same_step(suite, number):
    tiny = [case for case in cases_of(suite, False) if "tiny" in case.name]
    tiny = [case for case in tiny if "clip" not in case.name]
    assert len(tiny) == number
    for case in tiny:
        after = {}
        for name, competitor in case.competitors.items():
            step = competitor.make()
            step()
            after[name] = [p.detach() for p in step.__self__.param_groups[0]["params"]]
        for parameters in after.values():
            torch.testing.assert_close(parameters, after["torch"])


def test_dtypes_agree_on_the_loss():
    case = cases_of("dtypes", False)[0]
    losses = [float(competitor.make()().detach()) for competitor in case.competitors.values()]
    assert max(losses) - min(losses) < 0.02


def step_once(name):
    try:
        trainer = peers.COMPETITORS[name].trainer("seed")
    except Unavailable as error:
        pytest.skip(str(error))
    trainer.step()
    return [parameter.detach() for parameter in trainer.parameters()]


@pytest.mark.parametrize("name", [n for n in peers.COMPETITORS if n != "torch.compile"])
def test_trainers_make_the_same_step(name):
    expected = step_once("torch Adam")
    parameters = step_once(name)
    if name == "scikit-learn":  # its own initial weights; one output for two classes
        assert [p.shape for p in parameters[:-2]] == [p.shape for p in expected[:-2]]
    else:
        torch.testing.assert_close(parameters, expected, rtol=1e-4, atol=1e-5)


def test_a_missing_package_is_skipped_by_name():
    with pytest.raises(Unavailable, match=r"no-such-peer is not installed.*mlp_ext\[bench\]"):
        peers.installed("no-such-peer")


# ---- records, CSV, ceilings


def test_rates_are_of_the_ceiling():
    (_, ours, fast) = records.records_of(fake_result(ceiling="fma"), CEILINGS)
    assert (ours.rate, ours.unit, ours.percent) == (pytest.approx(200), "GFLOP/s", 100)
    assert ours.speedup == 2 and fast.speedup == 4
    (_, ours, _) = records.records_of(fake_result(ceiling="stream"), {})
    assert (ours.rate, ours.unit, ours.percent) == (pytest.approx(0.5), "GB/s", None)


def test_csv_round_trip(tmp_path):
    made = records.records_of(fake_result(ceiling="fma", notes={"late": "failed: x, y"}), CEILINGS)
    path = tmp_path / "folder" / "figures.csv"
    records.write_csv(path, made, MACHINE, CEILINGS)
    assert records.read_csv(path) == (made, MACHINE, CEILINGS)


def test_csv_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="lacks the columns bytes, case"):
        records.read_csv(path)


def test_losses_are_to_rivals_only():
    result = fake_result()
    competitors = result.case.competitors
    (group,) = records.groups(records.records_of(result, {}))
    assert [(r.competitor, ratio) for r, ratio in group.losses()] == [("fast", 0.5)]
    competitors["fast"] = Competitor(working(), OWN)
    (group,) = records.groups(records.records_of(result, {}))
    assert group.losses() == []


def test_a_busy_machine_is_noticed():
    result = fake_result()
    assert records.noise(records.records_of(result, {})) == ""
    result.timings["mlp_ext"].samples = [1e-3, 2e-3, 3e-3]
    assert "busy" in records.noise(records.records_of(result, {}))


def test_no_compiler_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(ceilings, "BUILD", tmp_path)
    with pytest.raises(compiler.NoCompiler, match="no-such-compiler"):
        ceilings.measured()
    path = tmp_path / "figures.csv"
    assert command.main(["losses", "stacks", "--csv", str(path)], TINY) == 0
    assert "No ceilings" in capsys.readouterr().out
    read, _, limits = records.read_csv(path)
    assert limits == {} and {r.suite for r in read} == {"losses", "stacks"}
    assert all(r.median_us and r.percent is None for r in read)


# ---- the command lines


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such-suite"], "unknown suite no-such-suite; expected loop"),
        (["--threads", "0"], "at least 1"),
        (["--threads", "many"], "--threads"),
    ],
)
def test_bad_arguments(arguments, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert words in capsys.readouterr().err


def test_failing_ours_is_an_error(monkeypatch, tmp_path, capsys):
    competitors = {"ours": Competitor(broken, OURS), "torch": Competitor(working(), BASELINE)}
    monkeypatch.setattr(command, "cases_of", lambda *_: [Case("losses", "c", competitors)])
    monkeypatch.setattr(ceilings, "measured", lambda: CEILINGS)
    assert command.main(["losses", "--csv", str(tmp_path / "f.csv")], TINY) == 1
    assert "ours failed: RuntimeError: out of luck" in capsys.readouterr().out


def test_sweep_uses_the_flags_of_setup_and_refuses_bad_shapes(capsys):
    assert {"-O3", "-ffp-contract=off"} <= set(sweep.flags())
    with pytest.raises(SystemExit, match="2"):
        sweep.main(["--shapes", "8x8"])
    assert "expected MxNxK" in capsys.readouterr().err


def test_sweep_races_the_choices():
    library = SimpleNamespace(sweep_problem=lambda *_: 1, sweep_run=lambda problem: None)
    cases = sweep.cases(library, [None, (64, 28, 128)], "avx2", [(8, 8, 8)])
    assert [case.name for case in cases] == ["forward 8x8x8", "dX 8x8x8", "dW 8x8x8"]
    assert list(cases[0].competitors) == [sweep.AS_BUILT, "64 28 128"]
    result = harness.measure(cases[0], TINY)
    assert len(result.timings) == 2 and not result.notes
