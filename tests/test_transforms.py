"""Modules of ours under torch.compile, export, fx, jit, torch.func, checkpoint, autocast, modes."""

import pytest
import torch
from cases import ACTIVATIONS
from torch import nn

from mlp_ext.nn import MLP, Linear, LinearReLU, Sequential


def mixed() -> nn.Module:
    return Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.5), Linear(6, 5, activation="gelu"),
        nn.LayerNorm(5), Sequential(LinearReLU(5, 5), nn.Linear(5, 3)), nn.Softplus(),
    )  # fmt: skip


MODELS = {"Sequential": mixed, "Linear": lambda: Linear(4, 3, activation="silu")}
models = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())


def same_gradients(a: nn.Module, run_a, run_b, x: torch.Tensor) -> None:
    names, parameters = zip(*a.named_parameters(), strict=True)
    left = torch.autograd.grad(run_a(x).square().sum(), parameters)
    right = torch.autograd.grad(run_b(x).square().sum(), parameters)
    for name, p, q in zip(names, left, right, strict=True):
        torch.testing.assert_close(p, q, msg=lambda m, n=name: f"{n}: {m}")


@models
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_without_a_graph_break(model, dynamic):
    model = model().eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for rows in (2, 5):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(compiled(x), model(x))
        same_gradients(model, compiled, model, x)


@models
def test_exports(model):
    model, x = model().eval(), torch.randn(2, 4)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))


def test_exported_sequential_is_that_of_torch():
    ours = mixed().eval()
    torchs = nn.Sequential(*ours)
    graphs = [torch.export.export(m, (torch.randn(2, 4),)).graph for m in (ours, torchs)]
    assert [n.target for n in graphs[0].nodes] == [n.target for n in graphs[1].nodes]


@models
def test_fx_traces(model):
    model, x = model().eval(), torch.randn(2, 4)
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(x), model(x))
    same_gradients(model, traced, model, x)


@models
@pytest.mark.parametrize("how", ["real", "fake", "symbolic"])
def test_make_fx_traces(model, how):
    from torch.fx.experimental.proxy_tensor import make_fx

    model, x = model().eval().requires_grad_(False), torch.randn(2, 4)
    traced = make_fx(model, tracing_mode=how, _allow_non_fake_inputs=True)(x)
    other = torch.randn(2, 4)
    torch.testing.assert_close(traced(other), model(other))


@models
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jit_traces(model):
    model, x = model().eval(), torch.randn(2, 4)
    traced = torch.jit.trace(model, x)
    other = torch.randn(3, 4)
    torch.testing.assert_close(traced(other), model(other))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("around", [lambda m: m, nn.Sequential], ids=["itself", "as a child"])
@models
def test_jit_scripts(model, around):
    model, x = around(model()).eval(), torch.randn(2, 4)
    expected, keys = model(x), list(model.state_dict())
    scripted = torch.jit.script(model)
    torch.testing.assert_close(scripted(x), expected)
    assert list(scripted.state_dict()) == keys == list(model.state_dict())
    torch.testing.assert_close(model(x), expected)


@models
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch.func.jvp's own
def test_functional_transforms(model):
    model, x = model().eval().double(), torch.randn(3, 4, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, x):
        return torch.func.functional_call(model, parameters, (x,)).square().sum()

    model.zero_grad()
    model(x).square().sum().backward()
    whole = torch.func.grad(loss)(parameters, x)
    rows = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for name, p in model.named_parameters():
        torch.testing.assert_close(whole[name], p.grad)
        torch.testing.assert_close(rows[name].sum(0), p.grad)
    tangent = torch.randn_like(x)
    _, forward = torch.func.jvp(lambda x: loss(parameters, x), (x,), (tangent,))
    torch.testing.assert_close(forward, (torch.func.grad(loss, 1)(parameters, x) * tangent).sum())


def test_ensembles():
    members = [MLP([4, 5, 3]) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(members)
    x = torch.randn(2, 4)

    def call(parameters, buffers):
        return torch.func.functional_call(members[0], (parameters, buffers), (x,))

    together = torch.func.vmap(call)(parameters, buffers)
    torch.testing.assert_close(together, torch.stack([member(x) for member in members]))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints(reentrant):
    from torch.utils.checkpoint import checkpoint

    model = MLP([4, 6, 3])
    x = torch.randn(5, 4, requires_grad=True)
    same_gradients(model, lambda x: checkpoint(model, x, use_reentrant=False), model, x)
    if reentrant:
        model(x).sum().backward()
        expected = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        checkpoint(model, x, use_reentrant=True).sum().backward()
        torch.testing.assert_close([p.grad for p in model.parameters()], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_autocast_gives_the_dtypes_that_torch_gives(activation, dtype):
    ours = MLP([4, 6, 3], activation=activation, final_activation=activation)
    own, x = Linear(4, 3, activation=activation), torch.randn(5, 4)
    for model, twin in ((ours, nn.Sequential(*ours)), (own, nn.Sequential(own, nn.Identity()))):
        results = []
        for module in (model, twin):
            input = x.clone().requires_grad_()
            with torch.autocast("cpu", dtype=dtype):
                output = module(input)
            output.float().square().sum().backward()
            results.append((output, input.grad))
        torch.testing.assert_close(results[0], results[1], rtol=0.02, atol=0.02)
    with torch.autocast("cpu", dtype=dtype):
        assert own(x).dtype == ours(x).dtype == torch.nn.Linear(4, 3)(x).dtype


@models
def test_meta_tensors_and_no_grad_modes(model):
    ours = model()
    assert ours.to("meta")(torch.randn(2, 4, device="meta")).shape == (2, 3)
    ours, x = model(), torch.randn(2, 4)
    with torch.no_grad():
        assert not ours(x).requires_grad
    with torch.inference_mode():
        assert ours(x).is_inference()


def test_dispatch_modes_see_every_operator():
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for kind in (Sequential, nn.Sequential):
        counter = FlopCounterMode(display=False)
        with counter:
            kind(*MLP([4, 6, 3]))(torch.randn(2, 4)).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
