"""What was patched before mlp_ext was imported counts as patched, until torch's own is back."""

import subprocess
import sys

PROGRAM = """
import torch
import torch.nn.functional as F

real = F.relu, F.linear, torch.nn.ReLU.forward

def relu(x, inplace=False):
    return -x

F.relu, F.linear, torch.nn.ReLU.forward = relu, lambda *a: real[1](*a), lambda self, x: -x
import mlp_ext
from mlp_ext._load import _C

for back in range(3):
    assert not _C.as_usual(), back
    if back == 0:
        F.linear = real[1]
    elif back == 1:
        F.relu = real[0]
    else:
        torch.nn.ReLU.forward = real[2]
assert _C.as_usual(), _C.what_is_unusual()
F.relu = relu
assert not _C.as_usual()
"""


def test_torch_s_own_is_recognised_when_it_comes_back():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=120)
