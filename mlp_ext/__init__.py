"""Fused linear layers, losses and optimizers for PyTorch, in hand-written C++.

Swap single pieces (`mlp_ext.nn`, `mlp_ext.optim`, `mlp_ext.functional`), or fuse a whole model with
`mlp_ext.fuse(model)`. `python -m mlp_ext` prints what was built and what runs on this machine.
"""

__version__ = "0.1.0"  # the only place; pyproject.toml reads it from here without importing

# First: refuses to load the shared object under another torch than it was built against.
from . import _load  # noqa: F401

# isort: split
from . import _flops as _flops  # registers what torch.ops.mlp_ext counts for in FLOPs
from . import _ops as _ops  # registers the fake kernels of torch.ops.mlp_ext
from . import _surroundings as _surroundings  # takes note of what is torch's own
from . import cpu, data, functional, nn, optim, reference
from .fusion import explain, fuse, unfuse
from .train_step import TrainStep

__all__ = [
    "TrainStep",
    "__version__",
    "cpu",
    "data",
    "explain",
    "functional",
    "fuse",
    "nn",
    "optim",
    "reference",
    "unfuse",
]
