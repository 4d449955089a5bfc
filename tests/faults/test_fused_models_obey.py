"""A fused model, our Linear do under modes and patches what plain PyTorch does."""

import contextlib
import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from twins import assert_same, seeded

import mlp_ext
from mlp_ext._load import _C


class Coarse(TorchFunctionMode):
    """What quantizers do."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.linear:
            args = (args[0], args[1].sign(), *args[2:])
        return func(*args, **(kwargs or {}))


class Negated(TorchFunctionMode):
    """Of functions that activations and losses are."""

    NAMES = ("relu", "gelu", "silu", "tanh", "sigmoid", "cross_entropy", "mse_loss")

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        return -output if func.__name__ in self.NAMES else output


class Recorded(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def build() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Identity(),
        nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), nn.LeakyReLU(), nn.LayerNorm(8),
        nn.Linear(8, 6), nn.SiLU(), nn.Dropout(0.5), nn.Linear(6, 6), nn.ELU(),
        nn.Linear(6, 4), nn.Softplus(), nn.Linear(4, 3), nn.Sigmoid(),
    ).double()  # fmt: skip


def own_layers() -> nn.Sequential:
    """The same with the activations in the layers."""
    own = mlp_ext.nn.Linear
    return nn.Sequential(
        own(5, 8, activation="relu"), own(8, 8, activation="tanh"), own(8, 8, activation="gelu"),
        own(8, 8, activation="leaky_relu"), own(8, 6, activation="silu"),
        own(6, 6, activation="elu"), own(6, 4, activation="softplus"), own(4, 3),
    ).double()  # fmt: skip


def plain_layers() -> nn.Sequential:
    ours = own_layers()
    activations = (nn.ReLU, nn.Tanh, nn.GELU, nn.LeakyReLU, nn.SiLU, nn.ELU, nn.Softplus)

    class Twin(nn.Linear):
        def forward(self, input):
            return self.activation(super().forward(input))

    for i, activation in enumerate(activations):
        twin = Twin(ours[i].in_features, ours[i].out_features).double()
        twin.load_state_dict(ours[i].state_dict())
        twin.__dict__["activation"] = activation()
        ours[i] = twin
    last = nn.Linear(4, 3).double()
    last.load_state_dict(ours[-1].state_dict())
    ours[-1] = last
    return ours


def batch() -> torch.Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


MODELS = {
    "fused": lambda: (mlp_ext.fuse(seeded(build)), seeded(build)),
    "layers": lambda: (seeded(own_layers), seeded(plain_layers)),
    "fused layers": lambda: (mlp_ext.fuse(seeded(own_layers)), seeded(plain_layers)),
}


@pytest.fixture(params=MODELS)
def models(request):
    return MODELS[request.param]()


@pytest.mark.parametrize("modes", [(Coarse,), (Negated,), (Coarse, Negated), (Recorded,)])
def test_modes(models, modes):
    before = models[0].eval()(batch())
    models[0].train()
    with contextlib.ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode())
        assert_same(*models, batch())
        under = models[0].eval()(batch())
    assert torch.equal(models[0](batch()), before)
    assert torch.allclose(under, before) == (modes == (Recorded,))


def test_dispatch_modes_see_torch_s_operators(models):
    names = []
    for model in models:
        with Recorded() as mode:
            model(batch())
        names.append(mode.names)
    assert names[0] == names[1] and "aten.addmm.default" in names[0]


def test_flops_are_counted(models):
    counts = []
    for model in models:
        with FlopCounterMode(display=False) as counter:
            model(batch()).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_a_mode_is_that_of_its_thread():
    ours, plain = MODELS["fused"]()
    ours.eval(), plain.eval()
    expected, found = plain(batch()), []
    inside, asked = threading.Event(), threading.Event()

    def other():
        inside.wait()
        found.append(ours(batch()))
        asked.set()

    thread = threading.Thread(target=other)
    thread.start()
    with Coarse():
        coarse = plain(batch())
        inside.set()
        asked.wait()
        torch.testing.assert_close(ours(batch()), coarse)
    thread.join()
    torch.testing.assert_close(found[0], expected)
    assert not torch.allclose(coarse, expected)


def test_a_mode_that_a_child_enters_is_seen_by_those_behind_it():
    class Enters(nn.Module):
        def forward(self, input):
            mode.__enter__()
            return input

    def build():
        return nn.Sequential(
            nn.Linear(5, 4), nn.ReLU(), Enters(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)
        )

    outputs = []
    for model in (mlp_ext.fuse(seeded(build)), seeded(build)):
        mode = Coarse()
        try:
            outputs.append(model(batch().float()))
        finally:
            mode.__exit__(None, None, None)
    torch.testing.assert_close(*outputs)


PATCHES = {
    "F.linear": lambda p: p.setattr(
        F, "linear", lambda x, w, b=None, f=F.linear: f(x, w.sign(), b)
    ),
    "F.relu": lambda p: p.setattr(F, "relu", lambda x, inplace=False: x * 2),
    "F.gelu": lambda p: p.setattr(F, "gelu", lambda x, approximate="none": x * 2),
    "F.silu": lambda p: p.setattr(F, "silu", lambda x, inplace=False: x * 2),
    "F.leaky_relu": lambda p: p.setattr(F, "leaky_relu", lambda x, *args: x * 2),
    "F.elu": lambda p: p.setattr(F, "elu", lambda x, *args: x * 2),
    "F.softplus": lambda p: p.setattr(F, "softplus", lambda x, *args: x * 2),
    "F.layer_norm": lambda p: p.setattr(F, "layer_norm", lambda x, *args: x * 2),
    "F.dropout": lambda p: p.setattr(F, "dropout", lambda x, *args: x * 2),
    "torch.tanh": lambda p: p.setattr(torch, "tanh", lambda x: x * 2),
    "torch.sigmoid": lambda p: p.setattr(torch, "sigmoid", lambda x: x * 2),
    "torch.relu": lambda p: p.setattr(torch, "relu", lambda x: x * 2),
    "Sequential.forward": lambda p: p.setattr(
        nn.Sequential, "forward", lambda self, x, f=nn.Sequential.forward: f(self, x) * 2
    ),
}


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("training", [False, True])
def test_patches(models, patch, training, monkeypatch):
    for model in models:
        model.train(training)
    assert_same(*models, batch())
    with monkeypatch.context() as patches:
        PATCHES[patch](patches)
        assert_same(*models, batch())
    assert_same(*models, batch())


def test_a_patched_forward_of_linear_is_that_of_our_linear_too(monkeypatch):
    ours, plain = seeded(lambda: mlp_ext.nn.Linear(5, 3).double()), seeded(lambda: nn.Linear(5, 3))
    patched = lambda self, x: F.linear(x, self.weight * 2, self.bias)  # noqa: E731
    monkeypatch.setattr(nn.Linear, "forward", patched)
    assert_same(ours, plain.double(), batch())


@pytest.mark.parametrize("kind", [nn.ReLU, nn.GELU, nn.Linear, nn.LayerNorm, nn.Identity])
@pytest.mark.parametrize("name", ["__call__", "_call_impl", "_wrapped_call_impl", "forward"])
def test_patches_of_one_class(kind, name, monkeypatch):
    ours, plain = MODELS["fused"]()
    real = getattr(kind, name)
    monkeypatch.setattr(kind, name, lambda self, *args: real(self, *args) + 1)
    assert_same(ours, plain, batch())
    what = f"torch.nn.{kind.__name__}.{name} is patched"
    assert all(what in report.how for report in mlp_ext.explain(ours))


def test_explain_says_what_is_in_the_way(monkeypatch):
    ours, own = MODELS["fused"]()[0], mlp_ext.nn.Linear(2, 2)
    assert all(report.fused for model in (ours, own) for report in mlp_ext.explain(model))
    with Coarse():
        for model in (ours, own):
            for report in mlp_ext.explain(model):
                assert not report.fused
                assert report.how == "left alone: a TorchFunctionMode is active (Coarse)"
    monkeypatch.setattr(F, "relu", lambda x, inplace=False: x)
    for report in (*mlp_ext.explain(ours), *mlp_ext.explain(own)):
        assert report.how.startswith("left alone: torch.nn.functional.relu is patched (by ")


def test_a_subclass_s_own_order_of_children_is_obeyed():
    def build(kind):
        class Backwards(kind):
            def __iter__(self):
                return reversed(list(self._modules.values()))

        return Backwards(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5), nn.Tanh()).double()

    kinds = (mlp_ext.nn.Sequential, nn.Sequential)
    assert_same(*(seeded(lambda k=kind: build(k)) for kind in kinds), batch())


def test_with_a_default_device_models_stay_fused(monkeypatch):
    ours, plain = MODELS["fused"]()
    calls = []
    real = _C.mlp
    monkeypatch.setattr(_C, "mlp", lambda *args: calls.append(1) or real(*args))
    torch.set_default_device("cpu")
    try:
        assert_same(ours, plain, batch())
        assert calls
        assert all(report.fused for report in mlp_ext.explain(ours))
    finally:
        torch.set_default_device(None)


def test_functional_call_under_a_mode():
    ours, plain = MODELS["fused"]()
    state = {name: value * 2 for name, value in plain.state_dict().items()}
    outputs = []
    for model in (ours, copy.deepcopy(plain)):
        torch.manual_seed(0)
        with Coarse():
            outputs.append(torch.func.functional_call(model, state, (batch(),)))
    torch.testing.assert_close(*outputs)


def test_a_layer_hands_a_subclass_of_tensor_to_torch_s_functions():
    class Seen(torch.Tensor):
        functions = []

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            cls.functions.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    layer = mlp_ext.nn.Linear(5, 3, activation="gelu").double()
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Seen), requires_grad=False)
    expected = F.gelu(F.linear(batch(), layer.weight.as_subclass(torch.Tensor), layer.bias))
    torch.testing.assert_close(layer(batch()).as_subclass(torch.Tensor), expected)
    assert F.linear in Seen.functions and F.gelu in Seen.functions
