"""TrainStep over a process group by its way on CUDA, tried on the CPU: the same as DDP.

The checks are in graphed_stepping.py; one group runs all of them. For GPUs
tests/cuda/test_step_group_cuda.py has these tests.
"""

import pytest
import torch
from graphed_stepping import STEPS, TRAINED
from group import Group


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphed")
    return Group("graphed_stepping", folder, MLP_EXT_TEST_DEVICE="cpu")


def same_on_each_rank(states):
    for part in ("parameters", "grads"):
        torch.testing.assert_close(states[0][part], states[1][part], rtol=0, atol=0)


def as_in_ddp(found):
    for ours, theirs in found:
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    same_on_each_rank([ours for ours, _ in found])
    assert found[0][0]["losses"] != found[1][0]["losses"]  # each process has its own


@pytest.mark.parametrize("name", TRAINED)
def test_as_in_ddp(group, name):
    as_in_ddp(group.results(name))


def test_epochs_of_different_lengths(group):
    results = group.results("epochs_refused")
    for result in results:
        assert result["errors"]["uneven"] == (
            "RuntimeError: TrainStep: the loaders of the group's processes have different numbers "
            "of batches, [3, 4]. None of them has taken a step."
        )
    first, second = (result["errors"]["missing"] for result in results)
    assert second == "OSError: no such file"
    assert first == f"ValueError: TrainStep failed in process 1 of the group: {second}"
    as_in_ddp([result["states"] for result in results])
    assert len(results[0]["states"][0]["losses"]) == STEPS


STARTS = {
    "too narrow": "",  # PyTorch's own words
    "elsewhere": "RuntimeError: TrainStep got an input on meta",
    "with a gradient": "RuntimeError: TrainStep got an input that requires a gradient",
    "no rows": "ValueError: TrainStep got an empty batch",
    "other dtype": "",
    "too few targets": "",
    "hooked": "RuntimeError: a hook was registered on the model",
    "frozen": "RuntimeError: TrainStep: the model's parameters, their sizes, dtype or which of",
}


def test_bad_calls_begin_no_all_reduce(group):
    results = group.results("bad_calls")
    for result in results:
        assert result["all_reduces"] == [0, 1]
        assert result["errors"].keys() == STARTS.keys()
        for name, error in result["errors"].items():
            assert error != "none" and error.startswith(STARTS[name]), f"{name}: {error}"
    same_on_each_rank([result["states"][0] for result in results])


def test_refusals(group):
    results = group.results("refusals")
    first, second = (result["errors"] for result in results)
    for errors in (first, second):
        for name, there in (("shapes", "0.weight (9, 6)"), ("frozen here", "middle.weight (8, 8)")):
            start = "ValueError: TrainStep: the processes of the group have different models: "
            assert errors[name].startswith(start) and f"process 1 {there}" in errors[name]
    causes = {
        "one model": "ValueError: TrainStep cannot run '1': Conv1d is not supported",
        "a norm": "ValueError: clip_grad_norm is a positive number or None, got -1",
    }
    for name, cause in causes.items():
        assert second[name] == cause
        assert first[name] == f"ValueError: TrainStep failed in process 1 of the group: {cause}"
    same_on_each_rank([result["states"][0] for result in results])
