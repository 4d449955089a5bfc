"""Skips what needs a GPU where there is none. (test_gates.py needs none, and runs without this.)"""

import pytest
import torch
from on_device import DEVICE


def pytest_collection_modifyitems(items):
    if DEVICE != "cuda" or torch.cuda.is_available():
        return
    reason = "needs a GPU that CUDA can use (MLP_EXT_TEST_DEVICE=cpu: tries the logic on the CPU)"
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason=reason))
