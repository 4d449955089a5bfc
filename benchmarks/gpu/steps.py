"""Whole training steps by the wall's clock: forward, cross-entropy, zero_grad, backward, Adam.

torch.compile is mode="reduce-overhead", which records CUDA graphs, of model and loss, with Adam's
fused step behind it, as its users write it. "torch in one graph" is the best that PyTorch offers
and takes the most care of its user: the whole step recorded once, Adam capturable, batches copied
in.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F

import mlp_ext

from ..harness import BASELINE, OURS, OWN, Case, Competitor
from ..models import net_of
from ..peers import training_step
from .cases import GpuCase
from .precision import matmul_precision, under

NETS: tuple[tuple[list[int], int], ...] = (
    ([64, 64, 64, 4], 256),
    ([17, 256, 256, 6], 256),
    ([784, 512, 256, 10], 512),
    ([1024, 1024, 1024, 1024], 4096),
)
WIDE = 4096  # rows from which the products take most of the time: their precision matters


def batch(device, sizes: list[int], rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, sizes[0], generator=generator)
    y = torch.randint(sizes[-1], (rows,), generator=generator)
    return x.to(device.torch), y.to(device.torch)


def eager(device, sizes, rows, compiled=False):
    model = net_of(sizes).to(device.torch)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    x, y = batch(device, sizes, rows)
    if not compiled:
        return training_step(model, F.cross_entropy, optimizer, x, y)
    loss_of = device.compiled(
        lambda x, y: F.cross_entropy(model(x), y), mode="reduce-overhead", fullgraph=True
    )

    def step():
        torch.compiler.cudagraph_mark_step_begin()
        loss = loss_of(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def in_one_graph(device, sizes, rows):
    model = net_of(sizes).to(device.torch)
    optimizer = torch.optim.Adam(model.parameters(), fused=True, capturable=True)
    x, y = batch(device, sizes, rows)
    recorded_x, recorded_y = x.clone(), y.clone()
    replay = device.record(training_step(model, F.cross_entropy, optimizer, recorded_x, recorded_y))

    def step():
        recorded_x.copy_(x)
        recorded_y.copy_(y)
        return replay()

    return step


def own_loop(device, sizes, rows):
    model = mlp_ext.fuse(net_of(sizes).to(device.torch))
    optimizer = mlp_ext.optim.Adam(model.parameters())
    x, y = batch(device, sizes, rows)
    return training_step(model, mlp_ext.functional.cross_entropy, optimizer, x, y)


def own_step(device, sizes, rows, **options):
    model = net_of(sizes).to(device.torch)
    adam = mlp_ext.optim.Adam(model.parameters())
    step = mlp_ext.TrainStep(model, F.cross_entropy, adam, **options)
    x, y = batch(device, sizes, rows)
    return lambda: step(x, y)


def autocast_loop(device, sizes, rows):
    step = eager(device, sizes, rows)

    def under_autocast():
        with torch.autocast(device.torch.type, torch.bfloat16):
            return step()

    return under_autocast


def _competitor(device, net, make: Callable, role="peer", precision="highest", **options):
    def prepare():
        # For what is compiled or recorded now, and, where it is not torch's default, for each call.
        with matmul_precision(precision):
            call = make(device, *net, **options)
        return call if precision == "highest" else under(precision, call)

    return Competitor(prepare, role)


def cases(device, nets=NETS) -> Iterator[GpuCase]:
    for net in nets:
        sizes, rows = net
        name = f"step {'-'.join(map(str, sizes))} / {rows}"
        competitor = partial(_competitor, device, net)
        for precision in ("highest", "high") if rows >= WIDE else ("highest",):
            competitors = {
                "torch fused Adam": competitor(eager, BASELINE, precision),
                "torch.compile": competitor(eager, precision=precision, compiled=True),
                "torch in one graph": competitor(in_one_graph, precision=precision),
                "mlp_ext loop": competitor(own_loop, OWN, precision),
                "TrainStep": competitor(own_step, OURS, precision),
            }
            title = name if precision == "highest" else f"{name} float32 {precision}"
            yield GpuCase(Case("step", title, competitors), wall=True, seconds=15.0)
        if rows >= WIDE:
            competitors = {
                "torch autocast": competitor(autocast_loop, BASELINE),
                "TrainStep": competitor(own_step, OURS, compute_dtype=torch.bfloat16),
            }
            yield GpuCase(Case("step", f"{name} bfloat16", competitors), wall=True)
