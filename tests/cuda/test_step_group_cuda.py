"""TrainStep over a process group on GPUs: by NCCL, which needs one for each process,
or by gloo, whose processes share one. The tests are those of test_graphed_group.py in
tests/distributed."""

import sys
from pathlib import Path

import pytest
import torch
from on_device import DEVICE, IS_CUDA, cuda

sys.path.append(str(Path(__file__).resolve().parents[1] / "distributed"))
from group import Group  # noqa: E402
from test_graphed_group import (  # noqa: E402, F401
    same_on_each_rank,
    test_as_in_ddp,
    test_bad_calls_begin_no_all_reduce,
    test_epochs_of_different_lengths,
    test_refusals,
)

pytestmark = cuda


@pytest.fixture(scope="module", params=["gloo", "nccl"])
def group(request, tmp_path_factory):
    has_two = IS_CUDA and torch.cuda.device_count() > 1
    if request.param != ("nccl" if has_two else "gloo"):
        pytest.skip("NCCL where there is a GPU for each process, otherwise gloo")
    folder = tmp_path_factory.mktemp("graphed")
    return Group("graphed_stepping", folder, request.param, MLP_EXT_TEST_DEVICE=DEVICE)


def test_a_step_does_not_wait_for_the_gpu(group):
    same_on_each_rank(group.results("without_waiting"))
