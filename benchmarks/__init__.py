"""Benchmarks of mlp_ext against what its users would run instead: `python -m benchmarks --help`."""
