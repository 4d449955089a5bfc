"""A thousand random training programs, ours against plain PyTorch: see the package `differential`.

A failure prints its seed, for `python -m tests.faults.differential --case SEED --verbose`. A crash
names its test, whose cases `--start SEED --cases 50 --processes 1` runs in a process of their own.
"""

import dataclasses
import gc

import pytest
from differential.check import check, run_both
from differential.compare import comparable
from differential.plan import draw
from differential.world import World

from mlp_ext import functional

CASES, CHUNK = 1000, 50


@pytest.fixture(autouse=True, scope="module")
def few_objects():
    """What is alive now is no garbage: cases that collect it need not look through torch."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("first", range(0, CASES, CHUNK))
def test_cases(first):
    failures = []
    for seed in range(first, first + CHUNK):
        plan, failure, _ = check(seed)
        if failure:
            failures.append(f"{plan}\n  {failure.kind}\n  {failure.text}")
    assert not failures, "\n\n".join(failures)


def cases_of(form, n=5):
    return [seed for seed in range(2000) if draw(seed).form == form][:n]


def test_a_difference_is_seen(monkeypatch):
    """With stacks that are a ten-thousandth too large."""
    stack = functional.mlp
    monkeypatch.setattr(functional, "mlp", lambda *a, **k: stack(*a, **k) * 1.0001)
    failures = [check(seed)[1] for seed in cases_of("mlp")]
    assert any(failure and failure.kind.endswith("value") for failure in failures)


def test_an_error_is_seen(monkeypatch):
    def stack(*args, **kwargs):
        raise LookupError("a stack that is out of order")

    monkeypatch.setattr(functional, "mlp", stack)
    failures = [check(seed)[1] for seed in cases_of("mlp")]
    assert any(failure and "LookupError" in failure.kind for failure in failures)


def of_two_mistakes(target):
    """A target of inference_mode, which PyTorch finds first; and, "beyond", one of no class."""
    plan = next(
        plan
        for plan in map(draw, range(2000))
        if (plan.entry, plan.form, plan.loss["kind"]) == ("loop", "mlp", "ce")
        and plan.own_loss
        and not plan.loss["options"].keys() - {"reduction"}
        and plan.batch["rows"]
    )
    operations = [("train", 1), ("target_of_inference", 1), ("train", 2)]
    loss = {**plan.loss, "target": target}
    return dataclasses.replace(plan, loss=loss, operations=operations[target == "beyond" :])


@pytest.mark.parametrize("target", ["beyond", "int64"])
@pytest.mark.parametrize("planted", [LookupError, IndexError])
def test_an_error_of_another_kind_is_seen(target, planted, monkeypatch):
    """Of two mistakes in a program either may be found first; an error that fits neither is seen,
    and so is one that fits a mistake which this program does not make."""
    stack, calls = functional.mlp, []

    def fails(*args, **kwargs):
        calls.append(1)
        if len(calls) == 1 + (target == "int64"):
            raise planted("planted")
        return stack(*args, **kwargs)

    monkeypatch.setattr(functional, "mlp", fails)
    failure, _ = run_both(of_two_mistakes(target))
    is_one_of_its_own = target == "beyond" and planted is IndexError
    assert (failure is None) == is_one_of_its_own
    assert is_one_of_its_own or planted.__name__ in failure.kind


def test_of_what_fails_the_error_alone_is_compared():
    log = [(1, "hook", 1), (2, "hook", 1), (2, "changed by an error", "states")]
    log.append((2, "error", KeyError))
    assert comparable(log) == [log[0], *log[2:]]


def test_a_case_is_the_same_each_time():
    """Also in what is left behind: patches, modes and flags would change the second run."""
    for seed in range(40, 60):
        logs = [comparable(World(draw(seed), False).run().log) for _ in range(2)]
        assert str(logs[0]) == str(logs[1]), seed
