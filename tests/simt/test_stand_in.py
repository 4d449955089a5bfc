"""The tests of the public API, run by the CUDA half on the host (stand_in.py).

Only where SIMT_FLAVOURS names "stand-in", and after stand_in.py, which compiles for minutes: `make
check-cuda-host` does both. No test builds it, for several may run at once.
"""

import os
import subprocess
import sys

import pytest
from stand_in import FOLDER, ROOT

CHOSEN = os.getenv("SIMT_FLAVOURS", "plain").split(",")

# What there is for both devices, at sizes that fibers run in a few minutes. Left out: what is the
# CPU's own (instruction sets, threads, TrainStep's compiled core), class indices out of range (NaN
# on CUDA), and the clients.
SUITES = {
    "stacks": ["test_mlp.py", "test_autograd.py", "test_nn.py", "test_transforms.py"],
    "linear": ["test_linear.py", "-k", "not K1030 and not longest_sum and not same_bits"],
    "losses": ["test_cross_entropy.py", "test_loss_modules.py"],
    "optimizers": ["test_optim.py", "test_optim_reference.py"],
    "ops": ["test_opcheck.py"],
    "cuda": ["cuda/test_losses_cuda.py", "cuda/test_optim_cuda.py", "cuda/test_library_cuda.py"],
}


@pytest.mark.skipif("stand-in" not in CHOSEN, reason="SIMT_FLAVOURS does not name stand-in")
@pytest.mark.parametrize("suite", SUITES)
def test_suite(suite):
    assert list(FOLDER.glob("mlp_ext/_C*.so")), "not built: python tests/simt/stand_in.py"
    arguments = [str(ROOT / "tests" / a) if a.endswith(".py") else a for a in SUITES[suite]]
    options = ["-q", "-x", "--best-isa", "-c", str(ROOT / "pyproject.toml")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *arguments],
        cwd=FOLDER,  # where Python looks for mlp_ext first
        env={**os.environ, "PYTHONPATH": str(FOLDER), "MLP_EXT_TEST_DEVICE": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
