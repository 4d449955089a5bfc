"""Skips what needs a GPU, or kernels for it, where there are none. (test_gates.py needs neither,
and runs without this file.)"""

import pytest
import torch
from on_device import DEVICE


def pytest_collection_modifyitems(items):
    has_kernels = torch._C._dispatch_has_kernel_for_dispatch_key("mlp_ext::mlp", "CUDA")
    if DEVICE != "cuda" or torch.cuda.is_available() and has_kernels:
        return
    reason = "needs a GPU that CUDA can use (MLP_EXT_TEST_DEVICE=cpu: tries the logic on the CPU)"
    if torch.cuda.is_available():
        reason = "this mlp_ext was built without CUDA kernels: see `python -m mlp_ext`"
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason=reason))
