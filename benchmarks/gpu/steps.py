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

from ..harness import BASELINE, OURS, OWN, PEER, Case, Competitor
from ..models import NETS, net_of
from ..peers import training_step
from .settings import settings, under
from .timing import Timed

# The seven nets, those that predictions are of first, and one whose products take most of the time.
FIRST = ("rl", "sac", "mnist512")
LARGE = ([1024, 1024, 1024, 1024], 4096)


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
    options = {"fused": True, "capturable": not device.tiny}
    optimizer = torch.optim.Adam(model.parameters(), **options)
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


def own_step(device, sizes, rows):
    model = net_of(sizes).to(device.torch)
    adam = mlp_ext.optim.Adam(model.parameters())
    step = mlp_ext.TrainStep(model, F.cross_entropy, adam)
    x, y = batch(device, sizes, rows)
    return lambda: step(x, y)


COMPETITORS: dict[str, tuple[Callable, str]] = {
    "torch fused Adam": (eager, BASELINE),
    "torch.compile": (partial(eager, compiled=True), PEER),
    "torch in one graph": (in_one_graph, PEER),
    "mlp_ext loop": (own_loop, OWN),
    "TrainStep": (own_step, OURS),
}


def _timed(device, net, precision: str = "highest") -> Timed:
    def competitor(make: Callable, role: str):
        def prepare():
            # For what is compiled or recorded now, and, where it is not torch's default, each call.
            with settings(precision):
                call = make(device, *net)
            return call if precision == "highest" else under(precision, call)

        return Competitor(prepare, role)

    sizes, rows = net
    words = "" if precision == "highest" else " tf32"
    competitors = {name: competitor(*made) for name, made in COMPETITORS.items()}
    case = Case("steps", f"step {'-'.join(map(str, sizes))} / {rows}{words}", competitors)
    return Timed(case, wall=True, paths={"TrainStep": f"TrainStep{words}"})


def first(device) -> Iterator[Timed]:
    nets = [([3, 4, 2], 5)] if device.tiny else [NETS[name] for name in FIRST]
    return (_timed(device, net) for net in nets)


def rest(device) -> Iterator[Timed]:
    large = ([3, 4, 2], 6) if device.tiny else LARGE
    yield from (_timed(device, large, precision) for precision in ("highest", "high"))
    for name in () if device.tiny else [name for name in NETS if name not in FIRST]:
        yield _timed(device, NETS[name])
