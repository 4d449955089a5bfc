"""What to run when there is an NVIDIA GPU: `python -m benchmarks.gpu --help`."""
