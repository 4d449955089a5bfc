"""mlp_ext.optim against torch.optim in its for-loop form: 100 steps of the same gradients.

Parameters and every state tensor agree to 1e-6 (float32) and 1e-12 (float64): the largest
difference relative to the largest element that this state (exp_avg, say) has in any parameter.
Relative to the tensor alone, a single element would be judged by how near 0 it happens to be.

In float32 this asks for torch's roundings too: 0.999 is the nearest float32, which after 100 steps
is 1e-6 away from 0.999, and AdamW rounds the decayed parameter before it subtracts (one fused
multiply-add for both is 2e-6 away, as the same element is rounded the same way each time).
"""

import copy
import math

import pytest
import torch
from cases import STATES, dtypes, loop, relative_error
from optimizer_twins import TOLERANCE, Twins, classes, configs

from mlp_ext import optim


@configs
@dtypes("f64", "f32")
def test_100_steps(isa, dtype, config):
    name, options = config
    Twins(name, dtype=dtype, **options).run(100).check()


@classes
@pytest.mark.parametrize(
    "layout",
    [
        "transposed",
        "expanded_rows",
        "expanded_columns",
        "rows_apart",
        "columns_apart",
        "misaligned",
    ],
)
def test_gradient_layouts(isa, name, layout):
    """torch 2.13's own fused=True is wrong for transposed ones on the CPU."""
    options = STATES[name]
    Twins(name, lr=0.05, **options).run(20, layout).check()


@classes
@pytest.mark.parametrize("layout", ["transposed", "rows_apart", "columns_apart", "misaligned"])
def test_parameter_layouts(isa, name, layout):
    """Parameters that are views: what lies between their elements is not touched."""
    options = STATES[name]
    twins = Twins(name, layout=layout, lr=0.05, **options)
    for gradient_layout in ("contiguous", layout, "transposed"):
        twins.run(7, gradient_layout).check()
    for p in twins.params[0]:
        whole = torch.empty(0, dtype=p.dtype).set_(p.untyped_storage())
        gaps = {
            "rows_apart": 5 * math.prod(p.shape[:-1]),
            "columns_apart": p.numel(),
            "misaligned": 1,
        }
        if p.dim() or layout == "misaligned":
            assert whole.isnan().sum() == gaps.get(layout, 0)


@classes
def test_missing_gradients(isa, name):
    """A parameter without gradient in some steps keeps its own step count."""
    options = STATES[name]
    twins = Twins(name, dtype=torch.float64, lr=0.05, **options)
    twins.run(30, missing=lambda step, i: (step + i) % 3 == 0 or i == 5).check()
    twins.run(3, missing=lambda step, i: True).check()
    twins.run(5).check()


@classes
def test_nan_and_inf_gradients(isa, name):
    for options in ({}, STATES[name]):
        for value in (math.nan, math.inf, -math.inf):
            twins = Twins(name, shapes=((19,), (3, 40)), lr=0.1, **options)
            twins.run(2)
            gradients = twins.gradients()
            for g in gradients:
                g.view(-1)[::7] = value
            for params, optimizer in zip(twins.params, twins.optimizers, strict=True):
                for p, g in zip(params, gradients, strict=True):
                    p.grad = g.clone()
                optimizer.step()
            twins.check().run(2).check()


@classes
@dtypes("bf16", "f16")
def test_16_bit_parameters(isa, name, dtype):
    """Ten steps are no further from the same ten in float64 than twice torch's own."""
    options = {**STATES[name], "lr": 0.01}
    twins = Twins(name, shapes=((33, 17), (1000,)), dtype=dtype, **options)
    exact = [torch.nn.Parameter(p.detach().double()) for p in twins.params[0]]
    wide = getattr(torch.optim, name)(exact, **loop(name), **options)
    for _ in range(10):
        twins.run(1)
        for p, q in zip(exact, twins.params[0], strict=True):
            p.grad = q.grad.double()
        wide.step()
    for p, q, e in zip(*twins.params, exact, strict=True):
        ours, torchs = relative_error(p, e), relative_error(q, e)
        assert ours <= max(2 * torchs, torch.finfo(dtype).eps), (ours, torchs)
        assert not torch.equal(p.double(), e) or ours == 0
        for key, value in twins.optimizers[1].state[q].items():
            assert twins.optimizers[0].state[p][key].dtype == value.dtype


@classes
def test_dtypes_mixed_in_one_group(isa, name):
    params = [
        [torch.nn.Parameter(torch.linspace(-1, 1, n, dtype=torch.float64).to(d)) for n, d in sizes]
        for sizes in [[(33, torch.float32), (20, torch.float64), (9, torch.float32)]] * 2
    ]
    optimizers = [
        getattr(optim, name)(params[0]),
        getattr(torch.optim, name)(params[1], **loop(name)),
    ]
    for _ in range(10):
        for some, optimizer in zip(params, optimizers, strict=True):
            for p in some:
                p.grad = p.detach() * 3 - 1
            optimizer.step()
    for p, q in zip(*params, strict=True):
        assert relative_error(p, q) <= TOLERANCE[p.dtype]


@classes
def test_threads_and_same_bits(isa, threads, name):
    """More elements than one task takes, twice."""
    results = []
    for _ in range(2):
        torch.manual_seed(1)
        twins = Twins(name, shapes=((300, 333), (70001,), (5,)), lr=0.01)
        results.append(twins.run(3).check().params[0])
    for p, q in zip(*results, strict=True):
        assert torch.equal(p, q)


@classes
def test_groups(isa, name):
    """Several groups with options of their own; one added and one changed on the way."""

    def build(module, params, **extra):
        other = {"weight_decay": 0.2, "lr": 0.02, "maximize": True}
        other |= STATES[name]
        groups = [{"params": params[:2]}, {"params": params[2:5], **other}]
        return getattr(module, name)(groups, lr=0.01, **extra)

    twins = Twins(name, dtype=torch.float64)
    twins.optimizers = [
        build(module, params, **extra)
        for module, params, extra in zip(
            (optim, torch.optim), twins.params, ({}, loop(name)), strict=True
        )
    ]
    twins.run(10).check()
    for optimizer, params in zip(twins.optimizers, twins.params, strict=True):
        optimizer.add_param_group({"params": params[5:], "lr": 0.5})
        optimizer.param_groups[0]["lr"] = 0.003
        optimizer.param_groups[1]["weight_decay"] = 0.0
        optimizer.param_groups[1]["maximize"] = False
    twins.run(10).check()
    for optimizer in twins.optimizers:
        optimizer.param_groups[0]["params"].pop()
    twins.run(5).check()


@classes
def test_tensors_replaced_between_steps(isa, name):
    """Nothing about a tensor is remembered from the last step: data, gradients, state, settings."""
    options = STATES[name]
    twins = Twins(name, shapes=((33, 17), (70,), (5,)), **options).run(3)
    for optimizer, params in zip(twins.optimizers, twins.params, strict=True):
        params[0].data = params[0].data.t().contiguous().t()
        params[1].data = params[1].data.clone()
        for key, value in optimizer.state[params[1]].items():
            optimizer.state[params[1]][key] = value * 1.5 if key != "step" else value + 2
        del optimizer.state[params[2]]
    twins.run(4)
    for optimizer, params in zip(twins.optimizers, twins.params, strict=True):
        params[2].data = copy.deepcopy(params[2].data) - 1
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        params[0].requires_grad_(False)
    twins.run(4).check()
