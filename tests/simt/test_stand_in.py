"""The tests of the public API, run by the CUDA half on the host (stand_in.py).

Minutes to compile, so only where SIMT_FLAVOURS names "stand-in", as `make check-cuda` does.
"""

import os
import subprocess
import sys

import pytest
from host_build import ROOT
from stand_in import build

CHOSEN = os.getenv("SIMT_FLAVOURS", "plain").split(",")
FOLDER = ROOT / "build" / "simt" / "stand-in"

# What there is for both devices, at sizes that fibers run in minutes. Left out: what is the CPU's
# own (instruction sets, threads, TrainStep's compiled core), and the ecosystem's clients.
SUITES = {
    "linear": ["test_linear.py"],
}


@pytest.fixture(scope="module")
def package():
    build(FOLDER)
    return FOLDER


@pytest.mark.skipif("stand-in" not in CHOSEN, reason="SIMT_FLAVOURS does not name stand-in")
@pytest.mark.parametrize("suite", SUITES)
def test_suite(package, suite):
    files = [f"tests/{name}" for name in SUITES[suite]]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-x", "--best-isa", *files],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
