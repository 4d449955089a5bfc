"""`python -m benchmarks.gpu` without a GPU: a whole dry run on the CPU, and what its time, crashes
and hangs do. What only a GPU can show is in benchmarks/gpu/device.py and mma.py."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from made_up_figures import ROOT

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import build, child, device, phases, sanitizer, worker
from benchmarks.gpu.results import Results, failures
from benchmarks.gpu.timings import ORDER
from benchmarks.gpu.worker import LOST, NOTHING, Item, work


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path)


# ---- whole runs


def test_a_dry_run(tmp_path, capfd):
    """Every phase in its process, every op, every suite."""
    assert command.main(["--dry-run", "--minutes", "5", "--out", str(tmp_path)]) == 0
    results, printed = Results(tmp_path), capfd.readouterr().out
    table = (tmp_path / "table.txt").read_text()
    programs = {line["name"]: line["state"] for line in results.read("program")}
    assert set(programs.values()) == {"passed", "skipped"} and programs["build"] == "skipped"
    assert [name.split()[0] for name in programs] == [
        "build", "smoke", "correctness", "compute-sanitizer", "timings",
    ]  # fmt: skip
    checks = results.read("check")
    assert len(checks) > 200 and all(check["passed"] for check in checks)
    times = results.read("time")
    assert not [line for line in times if line["note"]]
    suites = "adam clip layers losses rates stacks steps".split()
    assert sorted({line["suite"] for line in times}) == suites
    assert not results.unfinished("timings") and not failures(results)
    assert "no figure here is a measurement" in printed and len(printed) < 12_000
    assert "All figures" in table and "step 3-4-2 / 5" in table


def test_a_run_that_is_stopped_has_written_what_it_found(results, tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--out", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not results.read("check"):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 1
    assert "the run: cut off SIGTERM" in (tmp_path / "table.txt").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys, tmp_path):
    assert command.main(["--out", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Nothing was run: torch" in captured.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--only", "grid"], "invalid choice"), (["--minutes", "0"], "positive")],
)
def test_bad_arguments(arguments, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert words in capsys.readouterr().err


def test_parts_are_those_of_the_timings():
    assert set(command.PARTS) == {part for part, _ in ORDER}
    assert command._chosen(["tiles", "smoke"]) == (["build", "smoke", "timings"], ["tiles"])
    assert command._chosen([]) == (list(phases.SHARES), [])


# ---- the work of a phase


class Device:
    """Lost after an item that has broken it."""

    lost = False

    def synchronize(self):
        pass

    def is_lost(self):
        return self.lost


def items(device, *names):
    def run(name, _):
        device.lost = name == "breaks"
        if name in ("breaks", "fails"):
            raise RuntimeError(f"out of luck\nin {name}")
        yield {"kind": "figure", "case": name, "measure": "us", "value": float("inf")}

    return [Item(name, lambda d, name=name: run(name, d), 10) for name in names]


def test_an_item_that_fails_is_an_error_and_the_others_run(results):
    device = Device()
    assert work("smoke", items(device, "a", "fails", "b"), device, results, 100, lambda: 0) == 0
    assert [line["case"] for line in results.read("figure")] == ["a", "b"]
    assert failures(results) == ["smoke: fails: RuntimeError: out of luck"]
    assert results.read("figure")[0]["value"] == "inf"  # strict readers of JSON take no Infinity


def test_a_lost_device_ends_the_process_and_the_next_goes_on_behind(results):
    device = Device()
    names = ("a", "breaks", "b")
    assert work("smoke", items(device, *names), device, results, 100, lambda: 0) == LOST
    assert work("smoke", items(device, *names), Device(), results, 100, lambda: 0) == 0
    assert [line["item"] for line in results.read("end")] == ["a", "breaks", "b"]


def test_what_there_is_no_time_for_is_left_out(results):
    now = iter([0, 0, 95, 95])
    work("timings", items(Device(), "a", "b"), Device(), results, 100, lambda: next(now))
    assert [line["item"] for line in results.read("left_out")] == ["b"]
    assert not failures(results)


# ---- processes


def run_of(tmp_path, **options):
    return phases.Run(Results(tmp_path), tmp_path, {}, time.monotonic() + 100, **options)


def fake_worker(monkeypatch, *bodies):
    """Each process that is started runs the next of these; `begin` is theirs to write."""
    head = "import os, sys, time\nfrom pathlib import Path\nfrom benchmarks.gpu.results import "
    head += (
        "Results\nr = Results(Path(sys.argv[1]))\ndef begin(i): r.add('begin', phase='x', item=i)\n"
    )
    waiting = iter(bodies)

    def module(name, *arguments):
        folder = str(arguments[arguments.index("--out") + 1])
        return [sys.executable, "-c", head + next(waiting), folder]

    monkeypatch.setattr(phases, "module", module)


@pytest.mark.parametrize(
    ("end", "why"),
    [
        ("os.abort()", "signal 6"),
        ("sys.exit(3)", "exit status 3"),
        ("time.sleep(60)", "nothing new"),
    ],
)
def test_a_crash_or_a_hang_costs_its_item_and_no_more(monkeypatch, tmp_path, end, why):
    run = run_of(tmp_path)
    good = "begin('b'); r.add('end', phase='x', item='b', error='')"
    fake_worker(monkeypatch, f"begin('a'); print('last words', flush=True); {end}", good)
    phases.supervise(run, "x", 50, stall=1)
    (wrong,) = failures(run.results)
    assert wrong.startswith("x: a: the process ended") and why in wrong and "last words" in wrong
    assert run.results.read("program")[0]["state"] == "passed"
    assert [line["item"] for line in run.results.read("end")] == ["a", "b"]


def test_a_worker_that_does_not_start_is_a_failure_of_the_phase(monkeypatch, tmp_path):
    run = run_of(tmp_path)
    fake_worker(monkeypatch, "raise ImportError('undefined symbol')")
    phases.supervise(run, "x", 50, 20)
    assert "undefined symbol" in failures(run.results)[0]


def test_a_phase_is_cut_off_at_its_end_without_being_wrong(monkeypatch, tmp_path):
    run = run_of(tmp_path)
    fake_worker(monkeypatch, "begin('a'); time.sleep(60)")
    phases.supervise(run, "x", -1.5, 20)
    assert run.results.read("program")[0]["state"] == "cut off" and not failures(run.results)


def test_without_kernels_nothing_is_run(monkeypatch, tmp_path):
    fake_worker(monkeypatch, f"print('built without CUDA kernels'); sys.exit({NOTHING})")
    with pytest.raises(phases.NothingToRunOn, match="built without CUDA kernels"):
        phases.supervise(run_of(tmp_path), "x", 50, 20)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "built without CUDA kernels" in device.missing()
    assert worker.main(["smoke", "--out", str(tmp_path), "--until", "0"]) == NOTHING


def test_a_build_that_fails_ends_the_run(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "is_up_to_date", lambda about: False)
    ending = child.Ending(1, "exit status 1", 3.0, "error: no such kernel")
    monkeypatch.setattr(build, "build", lambda *arguments: ending)
    run, told = run_of(tmp_path), []
    phases.run_all(run, ["build", "smoke"], lambda: None, told.append)
    assert "no such kernel" in told[-1] and not run.results.read("begin")


def test_each_phase_leaves_time_for_those_behind():
    """Of nine minutes, and of four, where each takes all that it may; a build takes 110 s."""
    for left, least in ((532.0, 140), (232.0, 40)):
        left -= min(phases.seconds_for("build", left, ["smoke"]), 110)
        for phase in ("smoke", "correctness", "sanitizer"):
            left -= phases.seconds_for(phase, left, ["timings"])
        assert phases.seconds_for("timings", left, []) == left > least


def test_the_build_that_is_there_is_kept(tmp_path):
    about = {"torch": "2.11.0", "torch_cuda": "13.0", "capability": [9, 0]}
    assert not build.is_up_to_date(about, tmp_path)
    for name in ("mlp_ext/_build_info.py", "csrc/a.cu", "setup.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    info = "TORCH_VERSION, CUDA, CUDA_ARCHS = '2.11.0', '13.0', ['sm_90a']"
    (tmp_path / "mlp_ext/_build_info.py").write_text(info)
    library = tmp_path / "mlp_ext" / f"_C{build.sysconfig.get_config_var('EXT_SUFFIX')}"
    library.touch()
    assert build.is_up_to_date(about, tmp_path)
    assert not build.is_up_to_date(about | {"capability": [8, 0]}, tmp_path)
    assert not build.is_up_to_date(about | {"torch": "2.13.0"}, tmp_path)
    os.utime(tmp_path / "csrc/a.cu", (time.time() + 9, time.time() + 9))
    assert not build.is_up_to_date(about, tmp_path)


SAYS_RACE = (
    "========= COMPUTE-SANITIZER\n========= Error: Race\n========= RACECHECK SUMMARY: 1 hazard"
)
SAYS_NONE = "========= COMPUTE-SANITIZER\n40 calls, the last x\n========= ERROR SUMMARY: 0 errors"


def test_the_tools_of_the_sanitizer_are_judged(monkeypatch, tmp_path):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(
        f"#!/bin/sh\ncase $2 in racecheck) echo '{SAYS_RACE}'; exit 9;; memcheck) exit 1;;\n"
        f"synccheck) echo '{SAYS_NONE}'; echo '===== Error: Target'; sleep 60;;\n"
        f"*) echo '{SAYS_NONE}';; esac\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = {line["name"].split()[1]: line for line in sanitizer.run(tmp_path, 2)}
    states = {name: line["state"] for name, line in found.items()}
    assert states == {"memcheck": "FAILED", "racecheck": "FAILED", "synccheck": "cut off",
                      "initcheck": "passed"}  # fmt: skip
    assert "Error: Race" in found["racecheck"]["text"] and "40 calls" in found["synccheck"]["text"]
    monkeypatch.setattr(sanitizer, "find", lambda: None)
    assert [line["state"] for line in sanitizer.run(tmp_path, 2)] == ["skipped"]
