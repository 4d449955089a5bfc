"""mlp_ext.optim and clip_grad_norm_ on CUDA against torch's for-loop form.

With MLP_EXT_TEST_DEVICE=cpu, for the build of tests/simt/stand_in.py, where CPU tensors stand for
CUDA tensors: all but what needs a stream.
"""

import copy
import os

import pytest
import torch
from cases import STATES, dtypes, loop, relative_error
from optimizer_twins import TOLERANCE, Twins, classes, configs

from mlp_ext import optim
from mlp_ext.nn.utils import clip_grad_norm_

DEVICE = os.getenv("MLP_EXT_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU that CUDA can use"
    ),
]
needs_streams = pytest.mark.skipif(DEVICE != "cuda", reason="needs CUDA's streams")
CAPTURABLE = ("Adam", "AdamW", "RMSprop", "NAdam", "RAdam", "Adamax")
FUSED = ("SGD", "Adam", "AdamW", "Adagrad")


@pytest.fixture(autouse=True)
def kernels_only(monkeypatch):
    """A step that goes to torch fails."""
    monkeypatch.setattr(optim, "_take_torchs_step", lambda self: pytest.fail("torch's step"))


def twins(name, **options):
    return Twins(name, device=DEVICE, **options)


@configs
@dtypes("f64", "f32")
def test_100_steps(dtype, config):
    name, options = config
    twins(name, dtype=dtype, **options).run(100).check()


@configs
@dtypes("f64", "f32")
def test_counters_on_the_device(dtype, config):
    """Bias corrections are double precision there too: torch's own `capturable` is float32 in them,
    6e-5 away in the first steps."""
    name, options = config
    flag = "capturable" if name in CAPTURABLE else "fused"
    both = twins(name, dtype=dtype, ours={flag: True}, **options).run(30).check()
    if name != "SGD":
        for p in both.params[0]:
            assert both.optimizers[0].state[p]["step"].device == p.device


@classes
@pytest.mark.parametrize("layout", ["transposed", "expanded_rows", "columns_apart", "misaligned"])
def test_gradient_layouts(name, layout):
    twins(name, lr=0.05, **STATES[name]).run(10, layout).check()


@classes
@pytest.mark.parametrize("layout", ["transposed", "misaligned"])
def test_parameter_layouts(name, layout):
    both = twins(name, layout=layout, lr=0.05, **STATES[name])
    both.run(4).run(4, layout).check()


@classes
def test_missing_gradients(name):
    """Parameters with step counts of their own."""
    both = twins(name, dtype=torch.float64, lr=0.05, **STATES[name])
    both.run(12, missing=lambda step, i: (step + i) % 3 == 0).check()


@pytest.mark.parametrize("name", sorted({*CAPTURABLE, *FUSED}))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_learning_rate_on_the_device(name, dtype):
    options = {"capturable": True} if name in CAPTURABLE else {"fused": True}
    lr = torch.tensor(0.01, dtype=dtype, device=DEVICE)
    both = twins(name, lr=0.01, ours={"lr": lr, **options})
    both.run(3).check()
    lr.mul_(0.5)
    both.optimizers[1].param_groups[0]["lr"] = 0.005
    both.run(3).check()


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("overflow", [False, True])
def test_grad_scaler(name, overflow):
    """The kernels unscale, or leave all as it was."""
    results = []
    for module, options in ((optim, {"fused": True}), (torch.optim, loop(name))):
        torch.manual_seed(3)
        params = [torch.nn.Parameter(torch.randn(n, device=DEVICE)) for n in (33, 1, 2050)]
        optimizer = getattr(module, name)(params, lr=0.01, **options)
        scaler = torch.amp.GradScaler(DEVICE, init_scale=4.0, growth_interval=2)
        for step in range(4):
            optimizer.zero_grad()
            loss = sum((p * torch.randn(p.shape).to(DEVICE)).sum() for p in params)
            scaler.scale(loss).backward()
            if overflow and step in (0, 2):
                params[1].grad.fill_(float("inf"))
            scaler.step(optimizer)
            scaler.update()
        # torch's own for-loop form has them unscaled too, where it takes a step.
        results.append([*params, *(p.grad for p in params), torch.tensor(scaler.get_scale())])
        assert all(s["step"] == 4 - 2 * overflow for s in optimizer.state.values() if "step" in s)
    for ours, theirs in zip(*results, strict=True):
        assert relative_error(ours.cpu(), theirs.cpu()) <= 1e-6


@classes
@dtypes("bf16", "f16")
def test_master_weights(name, dtype):
    """As on the CPU, whose kernels apply the same rules."""
    results = []
    for device in (DEVICE, "cpu"):
        torch.manual_seed(5)
        params = [torch.nn.Parameter(torch.randn(n).to(device, dtype)) for n in (33, 1, 2050)]
        optimizer = getattr(optim, name)(params, lr=0.01, master_weights=True, **STATES[name])
        for _ in range(5):
            for p in params:
                p.grad = torch.randn(p.shape).to(device, dtype)
            optimizer.step()
        results.append([t for p in params for t in (p, *optimizer.state[p].values())])
    for ours, theirs in zip(*results, strict=True):
        limit = 1e-6 if ours.dtype == torch.float32 else torch.finfo(dtype).eps
        assert relative_error(ours.cpu(), theirs) <= limit


@classes
def test_state_dict_from_torch_and_back(name):
    both = twins(name, dtype=torch.float64, **STATES[name]).run(3)
    states = [copy.deepcopy(optimizer.state_dict()) for optimizer in both.optimizers]
    for optimizer, state in zip(both.optimizers, reversed(states), strict=True):
        optimizer.load_state_dict(state)
    both.run(3).check()


def test_more_tensors_than_a_launch_takes():
    shapes = [(1 + i % 7,) for i in range(150)]
    twins("Adam", shapes=shapes).run(5).check()


@dtypes("f64", "f32")
@pytest.mark.parametrize("max_norm", [0.5, 1e-3, 1e6, 0.0, float("inf"), float("nan")])
def test_clip_grad_norm(dtype, max_norm):
    results = []
    for function in (clip_grad_norm_, torch.nn.utils.clip_grad_norm_):
        torch.manual_seed(5)
        params = [
            torch.nn.Parameter(torch.zeros(n, device=DEVICE, dtype=dtype)) for n in (33, 0, 5001)
        ]
        for p in params:
            p.grad = torch.randn(p.shape, dtype=torch.float64).to(DEVICE, dtype)
        norm = function(params, max_norm)
        assert norm.device == params[0].device
        results.append([norm, *(p.grad for p in params)])
    for ours, theirs in zip(*results, strict=True):
        assert relative_error(ours.cpu(), theirs.cpu()) <= 2 * TOLERANCE[dtype]


# ---- what needs a GPU


@needs_streams
@pytest.mark.parametrize("name", CAPTURABLE)
def test_in_a_graph(name):
    both = twins(name, lr=0.01, ours={"capturable": True}, **STATES[name]).run(1)
    ours, theirs = both.optimizers
    gradients = [torch.zeros_like(p) for p in both.params[0]]
    for p, g in zip(both.params[0], gradients, strict=True):
        p.grad = g
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours.step()
    for _ in range(10):
        for p, fixed, g in zip(both.params[1], gradients, both.gradients(), strict=True):
            fixed.copy_(g)
            p.grad = g.clone()
        graph.replay()
        theirs.step()
    both.check()


@needs_streams
@pytest.mark.parametrize("name", CAPTURABLE)
def test_capture_without_capturable_raises(name, monkeypatch):
    monkeypatch.undo()  # it is torch's step that refuses
    both = twins(name).run(1)
    with pytest.raises(RuntimeError, match="capturable is False"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            both.optimizers[0].step()


@needs_streams
@classes
def test_nothing_waits(name):
    options = {"capturable": True} if name in CAPTURABLE else {}
    both = twins(name, ours=options, **STATES[name]).run(1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        both.optimizers[0].step()
        clip_grad_norm_(both.params[0], 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_streams
@classes
def test_parameters_on_the_cpu_and_on_cuda(name):
    results = []
    for module, options in ((optim, {}), (torch.optim, loop(name))):
        torch.manual_seed(5)
        params = [torch.nn.Parameter(torch.randn(70).to(d)) for d in ("cpu", DEVICE, "cpu")]
        optimizer = getattr(module, name)(params, lr=0.01, **STATES[name], **options)
        for _ in range(3):
            for p in params:
                p.grad = torch.randn(p.shape).to(p.device)
            optimizer.step()
        results.append(params)
    for ours, theirs in zip(*results, strict=True):
        assert relative_error(ours.cpu(), theirs.cpu()) <= 1e-6


@needs_streams
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@classes
def test_two_devices(name):
    both = Twins(name, device="cuda:0", lr=0.01, **STATES[name])
    for params in both.params:
        params[0].data = params[0].data.to("cuda:1")
    both.run(5).check()
