"""python -m benchmarks.gpu.small_shapes: every op of ours once on small shapes, forward and
backward, and a TrainStep of each kind. What compute-sanitizer watches: no PyTorch beside it, and
nothing is compared."""

import argparse

import torch
import torch.nn.functional as F

import mlp_ext

from .ops import DTYPES, SMALL, ops
from .routes import forced

# Tiny: the sanitizer makes kernels up to a hundred times slower. Odd sizes reach the edges.
SHAPES = ((7, 33, 17), (65, 129, 67))


def run_ops(device: torch.device, shapes=SHAPES, dtypes=DTYPES) -> int:
    """How many ran."""
    number = 0
    for shape in shapes:
        for dtype in dtypes:
            for op in ops(shape, dtype):
                tensors = [t if t is None else t.to(device) for t in op.tensors]
                floating = [t for t in tensors if t is not None and t.is_floating_point()]
                for t in floating if op.differentiable else ():
                    t.requires_grad_()
                out = op.ours(*tensors)
                if op.differentiable:
                    torch.autograd.grad(out, floating, torch.ones_like(out), allow_unused=True)
                number += 1
    return number


def run_steps(device: torch.device) -> int:
    model = torch.nn.Sequential(
        torch.nn.Linear(9, 33), torch.nn.ReLU(), torch.nn.Dropout(0.3), torch.nn.Linear(33, 17),
        torch.nn.BatchNorm1d(17), torch.nn.GELU(), torch.nn.Linear(17, 5),
    ).to(device)  # fmt: skip
    adam = mlp_ext.optim.Adam(model.parameters())
    step = mlp_ext.TrainStep(model, F.cross_entropy, adam, clip_grad_norm=0.5)
    for rows in (8, 8, 5):
        step(torch.randn(rows, 9, device=device), torch.randint(5, (rows,), device=device))
    return 3


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.small_shapes")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", action="store_true", help="TrainStep as well")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    number = run_ops(device, SHAPES if device.type == "cuda" else SMALL[:1])
    with forced("library"):  # and what our kernels do beside cuBLASLt's
        number += run_ops(device, SHAPES[:1])
    number += run_steps(device) if options.steps else 0
    if device.type == "cuda":
        torch.cuda.synchronize()
    print(f"{number} calls")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
