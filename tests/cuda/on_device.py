"""The device of the tests beside this: a GPU, or what MLP_EXT_TEST_DEVICE names.

MLP_EXT_TEST_DEVICE=cpu runs them on a machine without one: all but those marked `cuda_only` ask for
nothing that the CPU lacks, so their logic is tried there, and with the build of
tests/simt/stand_in.py it is CUDA's code that they try.
"""

import os

import pytest
import torch
from cases import check

DEVICE = os.getenv("MLP_EXT_TEST_DEVICE", "cuda")
IS_CUDA = DEVICE == "cuda"

cuda = pytest.mark.cuda
cuda_only = pytest.mark.skipif(not IS_CUDA, reason="of CUDA alone: streams, graphs, its settings")


def to_device(*tensors):
    """Lists and None as they are."""
    return tuple(
        t if t is None else to_device(*t) if isinstance(t, (list, tuple)) else t.to(DEVICE)
        for t in tensors
    )


def check_on_device(label, ours, theirs, tensors, grad_output=None, **options):
    """cases.check, with CPU tensors of any strides moved to the device as they are laid out."""
    moved = [t if t is None else same_layout(t) for t in tensors]
    dy = None if grad_output is None else same_layout(grad_output)
    check(label, ours, theirs, moved, dy, **options)


def same_layout(t):
    """On the device, with the strides and the offset that it has here: `.to()` makes some dense."""
    if t.device.type == DEVICE:
        return t
    storage = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage())
    return storage.to(DEVICE).as_strided(t.shape, t.stride(), t.storage_offset())


def synchronize():
    if IS_CUDA:
        torch.cuda.synchronize()
