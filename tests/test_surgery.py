"""A fused model stays what the plain one is, whatever hooks, surgery, flags and copies do to it."""

import copy

import pytest
import torch
from surgery import SURGERY, batch, build, set_p
from torch import nn
from torch.nn.modules import module as torch_module
from twins import COPIES, assert_same, seeded

import mlp_ext
from mlp_ext import explain, functional, fuse
from mlp_ext._load import _C


@pytest.fixture
def stacks(monkeypatch):
    """Number of layers of every fused call so far."""
    calls: list[int] = []
    real = _C.mlp

    def counting(input, weights, biases, codes):
        calls.append(len(codes))
        return real(input, weights, biases, codes)

    monkeypatch.setattr(_C, "mlp", counting)
    return calls


def twins() -> tuple[nn.Module, nn.Module]:
    """The same model fused and plain, both after a call, so that nothing is fresh any more."""
    ours, torchs = fuse(seeded(build)), seeded(build)
    assert_same(ours, torchs, batch())
    return ours, torchs


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("surgery", SURGERY.values(), ids=SURGERY.keys())
@pytest.mark.parametrize("loaded", [False, True], ids=["before", "after deepcopy"])
def test_surgery(surgery, loaded):
    models = twins()
    for model in models:
        torch.manual_seed(11)
        surgery(model)
    if loaded:
        try:
            torchs = copy.deepcopy(models[1])
        except RuntimeError:  # a weight that the old weight_norm or prune has computed
            with pytest.raises(RuntimeError, match="deepcopy"):
                copy.deepcopy(models[0])
            return
        models = copy.deepcopy(models[0]), torchs
    for training in (models[0].training, not models[0].training):
        for model in models:
            model.train(training)
        assert_same(*models, batch())


@pytest.mark.parametrize(
    "surgery",
    {
        "bad approximate": lambda m: setattr(m[7], "approximate", "cubic"),
        "bad p": lambda m: set_p(m.eval(), 2),
        "misfit": lambda m: m.__setitem__(2, nn.Linear(9, 8).double()),
        "other dtype": lambda m: m[5].float(),
        "None": lambda m: m._modules.__setitem__("1", None),
        "no weight": lambda m: m[2].register_parameter("weight", None),
    }.items(),
    ids=lambda item: item[0],
)
def test_surgery_that_makes_the_call_fail(surgery):
    models = fuse(seeded(build)), seeded(build)
    for model in models:
        torch.manual_seed(11)
        surgery[1](model)
    assert_same(*models, batch(), error=True)


def test_surgery_changes_the_stacks(stacks):
    ours, x = fuse(seeded(build)).eval(), batch()
    handle = ours[2].register_forward_hook(lambda *args: None)
    ours(x)
    handle.remove()
    ours(x)
    assert stacks == [1, 1, 1, 1] + [3, 1, 1]


def test_a_child_compiled_by_itself_runs_compiled(stacks):
    """An mlp_ext.nn.Linear: of an nn.Linear alone torch.compile makes nothing."""
    graphs, x = [], batch(torch.float32)
    ours = mlp_ext.nn.Sequential(nn.Linear(6, 8), mlp_ext.nn.LinearReLU(8, 8), nn.Linear(8, 3))

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    expected = ours(x)
    ours[1].compile(backend=backend)
    torch.testing.assert_close(ours(x), expected)
    assert len(graphs) == 1 and stacks == [3, 1, 1]
    copy.deepcopy(ours)(x)  # torch's copies are not compiled
    assert len(graphs) == 1 and stacks[3:] == [3]


@pytest.mark.parametrize("inplace", [nn.Dropout(0.5, True), nn.Hardtanh(0, 1, True)], ids=repr)
@pytest.mark.parametrize("activation", functional.ACTIVATIONS)
def test_a_child_that_works_in_place_behind_a_stack(activation, inplace):
    ours = mlp_ext.nn.MLP([6, 4], final_activation=activation, dtype=torch.float64)
    ours.extend([inplace, nn.Linear(4, 2).double()])
    torchs = nn.Sequential(*copy.deepcopy(ours))
    torch.manual_seed(7)
    try:
        torchs(batch()).sum().backward()
        error = False
    except RuntimeError:  # the activation's derivative needs its output, which is gone
        error = True
    assert_same(ours, torchs, batch(), error=error)


@pytest.mark.parametrize("kind", ["forward_pre", "forward", "full_backward_pre", "full_backward"])
def test_global_hooks_see_every_module(kind):
    models, seen = twins(), []
    register = getattr(torch_module, f"register_module_{kind}_hook")
    handle = register(lambda module, *args: seen.append(type(module)) and None)
    try:
        assert not any(report.fused for report in explain(models[0]))
        assert_same(*models, batch())
    finally:
        handle.remove()
    seen = [nn.Sequential if kind is mlp_ext.nn.Sequential else kind for kind in seen]
    assert len(seen) == 28 and seen[:14] == seen[14:]


@pytest.mark.parametrize("kind", [nn.Linear, nn.LeakyReLU, nn.ReLU, nn.Identity])
def test_a_forward_patched_into_a_class_is_obeyed(kind, monkeypatch):
    models = twins()
    real = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, input: real(self, input) + 1)
    assert_same(*models, batch())


def test_a_patched_module_call_is_obeyed(monkeypatch):
    models, seen, real = twins(), [], nn.Module.__call__

    def call(self, *args):
        seen.append(type(self))
        return real(self, *args)

    monkeypatch.setattr(nn.Module, "__call__", call)
    assert_same(*models, batch())
    assert len(seen) == 2 * 14
    assert not any(report.fused for report in explain(models[0]))


@pytest.mark.parametrize("how", COPIES)
def test_copies(how):
    ours, torchs = twins()
    other = COPIES[how](ours)
    assert type(other) is mlp_ext.nn.Sequential
    assert_same(other, COPIES[how](torchs), batch())
    assert_same(ours, torchs, batch())


@pytest.mark.filterwarnings("ignore:Complex modules:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_to_another_dtype(dtype):
    ours, torchs = (model.eval() for model in twins())
    if dtype.is_complex:
        ours, torchs = ours[5:6], torchs[5:6]
        x = torch.randn(2, 8, dtype=dtype)
        torch.testing.assert_close(ours.to(dtype)(x), torchs.to(dtype)(x))
        return
    x = batch(dtype)
    tolerance = {} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(ours.to(dtype)(x), torchs.to(dtype)(x), **tolerance)
    assert_same(ours.double(), torchs.double(), batch())


def test_lazy_linear_joins_once_it_is_one(stacks):
    def lazy():
        return nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 2))

    ours, torchs, x = fuse(lazy()), lazy(), torch.randn(3, 6)
    assert not explain(ours)[0].fused and explain(ours)[1].fused
    torch.manual_seed(5)
    ours(x)
    assert type(ours[0]) is nn.Linear and stacks == [1]
    torch.manual_seed(5)
    torchs(x)
    torchs.load_state_dict(ours.state_dict())
    assert_same(ours, torchs, x)
    assert stacks == [1, 2]


def test_training_agrees_with_plain():
    ours, torchs = twins()
    for model in (ours, torchs):
        torch.manual_seed(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for step in range(20):
            optimizer.zero_grad()
            model.train(step % 5 != 4)
            model(batch()).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.state_dict(), torchs.state_dict())
