"""A thousand random training programs, ours against plain PyTorch: see the package `differential`.

A failure prints its seed, for `python -m tests.faults.differential --case SEED --verbose`. A crash
names its test, whose cases `--start SEED --cases 50 --processes 1` runs in a process of their own.
"""

import gc

import pytest
from differential.check import check
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


def test_a_case_is_the_same_each_time():
    """Also in what is left behind: patches, modes and flags would change the second run."""
    for seed in range(40, 60):
        logs = [comparable(World(draw(seed), False).run().log) for _ in range(2)]
        assert str(logs[0]) == str(logs[1]), seed
