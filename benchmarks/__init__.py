"""Benchmarks of mlp_ext against what its users would run instead: `python -m benchmarks --help`."""

import os

# Before numpy is loaded: the threads of its OpenBLAS, which scikit-learn uses, otherwise spin for
# 2^26 cycles (20 ms) after their last call, on the cores of whoever is timed next.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
