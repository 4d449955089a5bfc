"""Every CUDA kernel, run on the host over its shapes and compared with float64 (run_*.cpp).

SIMT_FLAVOURS names what is run: "plain" by default, "address" by `make check-cuda`, all three by
`make check-cuda-all`.
"""

import os

import pytest
from host_build import FLAVOURS, PROGRAMS, build, run

CHOSEN = os.getenv("SIMT_FLAVOURS", "plain").split(",")
# Sanitizers are 5 to 50 times slower: one schedule for addresses; for races one that keeps the
# warps of a block far apart.
ORDERS = {"plain": "0,3,5", "address": "3", "thread": "2"}


@pytest.mark.parametrize("flavour", CHOSEN)
@pytest.mark.parametrize("program", PROGRAMS)
def test_program(program, flavour):
    assert flavour in FLAVOURS, f"SIMT_FLAVOURS names {flavour!r}; there are {', '.join(FLAVOURS)}"
    done = run(build(program, flavour), SIMT_ORDERS=ORDERS[flavour])
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
