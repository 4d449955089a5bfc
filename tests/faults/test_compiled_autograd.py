"""Our nodes under compiled autograd, which records the backward pass as a graph: the gradients of
the plain engine, from a new graph and from the one that was recorded before."""

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo import compiled_autograd
from torch._dynamo.utils import counters

import mlp_ext
from mlp_ext import functional


def compiler(backend="eager"):
    return torch.compile(backend=backend, dynamic=False)


def gradients(call, tensors, compiled, backend="eager"):
    leaves = [t.clone().requires_grad_(t.requires_grad) for t in tensors]
    loss = call(*leaves)
    if compiled:
        with compiled_autograd._enable(compiler(backend)):
            loss.backward()
    else:
        loss.backward()
    return [t.grad for t in leaves]


def check(call, *tensors, backend="eager"):
    expected = gradients(call, tensors, False)
    for _ in range(2):
        torch.testing.assert_close(gradients(call, tensors, True, backend), expected)


@pytest.fixture(autouse=True)
def new_cache():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def wanted(*tensors):
    return [t.requires_grad_() for t in tensors]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("activation", [None, *functional.ACTIVATIONS])
def test_a_stack(activation, backend):
    def call(x, w, b, v):
        y = functional.mlp(x, [w, v], [b, None], activation=activation, final_activation=activation)
        return y.square().sum()

    tensors = torch.randn(5, 4), torch.randn(6, 4), torch.randn(6), torch.randn(3, 6)
    check(call, *wanted(*tensors), backend=backend)


@pytest.mark.parametrize("frozen", range(1, 15))
def test_frozen_parts(frozen):
    """Every choice of what wants a gradient: the stand-ins, and what is saved, differ."""

    def call(x, w, b, v):
        return functional.mlp(x, [w, v], [b, None], activation="tanh").square().sum()

    tensors = [torch.randn(5, 4), torch.randn(6, 4), torch.randn(6), torch.randn(3, 6)]
    for i, t in enumerate(tensors):
        t.requires_grad_(bool(frozen >> i & 1))
    check(call, *tensors)
    check(lambda x, w, b, v: functional.linear_relu(x, w, b).sum() + v.sum(), *tensors)


def test_one_graph_after_another():
    """Other shapes, activations and frozen parts from one cache; each with its own values."""
    for rows in (3, 5, 3):
        for activation in ("relu", "gelu", "relu"):
            for frozen in (False, True):
                x, w, v = torch.randn(rows, 4), torch.randn(6, 4), torch.randn(3, 6)
                w.requires_grad_(not frozen)
                v.requires_grad_()

                def call(x, w, v, activation=activation):
                    return functional.mlp(x, [w, v], None, activation=activation).sum()

                check(call, x, w, v)


def test_the_second_call_is_of_the_recorded_graph():
    w = torch.randn(3, 4, requires_grad=True)
    for _ in range(3):
        check(lambda x, w: functional.linear_relu(x, w).sum(), torch.randn(5, 4), w)
    assert counters["compiled_autograd"]["captures"] == 1


LOSSES = {
    "cross_entropy": [{}, {"label_smoothing": 0.1}, {"ignore_index": 1}, {"reduction": "sum"}],
    "mse_loss": [{}, {"reduction": "sum"}, {"reduction": "none"}],
    "huber_loss": [{"delta": 0.3}, {"delta": 2.0}],
    "binary_cross_entropy_with_logits": [{}, {"pos_weight": torch.tensor(3.0)}],
}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, dtype, backend):
    """All options in one cache, so that none is taken for another's."""
    for kwargs in LOSSES[name]:
        for shape in ((6, 3), (4, 5)):
            x = torch.randn(shape, dtype=dtype, requires_grad=True)
            y = torch.rand(shape, dtype=dtype)
            if "cross_entropy" == name:
                y = torch.randint(3, shape[:1])
            kwargs = {k: v.to(dtype) if torch.is_tensor(v) else v for k, v in kwargs.items()}

            def call(x, y=y, kwargs=kwargs):
                return getattr(functional, name)(x, y, **kwargs).sum() * 8

            check(call, x, backend=backend)


def test_a_loss_of_each_row():
    x, y = torch.randn(2, 3, 4, requires_grad=True), torch.randint(3, (2, 4))
    scale = torch.rand(2, 4)
    check(lambda x: (functional.cross_entropy(x, y, reduction="none") * scale).sum(), x)


@pytest.mark.parametrize("of_input", [False, True])
def test_gradients_of_targets(of_input):
    x, y = torch.randn(4, 3).requires_grad_(of_input), torch.randn(4, 3, requires_grad=True)
    check(functional.mse_loss, x, y)


def test_partial_gradients():
    w, v = torch.randn(6, 4, requires_grad=True), torch.randn(3, 6, requires_grad=True)
    x = torch.randn(5, 4, requires_grad=True)
    for inputs in ([v], [x], [w, x], [w, v, x], [v]):
        y = functional.mlp(x, [w, v], None).sum()
        expected = torch.autograd.grad(y, inputs, retain_graph=True)
        with compiled_autograd._enable(compiler()):
            torch.testing.assert_close(torch.autograd.grad(y, inputs), expected)


def test_a_model_and_its_loss_in_training():
    parameters = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = mlp_ext.fuse(nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)))
        optimizer = mlp_ext.optim.SGD(model.parameters(), lr=0.1)
        x, y = torch.randn(6, 4), torch.randint(3, (6,))
        for _ in range(3):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            if compiled:
                with compiled_autograd._enable(compiler()):
                    loss.backward()
            else:
                loss.backward()
            optimizer.step()
        parameters.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(*parameters)


def test_switched_on_for_torch_compile():
    model = mlp_ext.fuse(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    x = torch.randn(5, 4)
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))

    def train(x):
        model(x).square().sum().backward()

    with torch._dynamo.config.patch(compiled_autograd=True):
        torch.compile(train, backend="eager")(x)
    torch.testing.assert_close([p.grad for p in model.parameters()], list(expected))


@pytest.mark.parametrize("hook", ["tensor", "node before", "node after"])
def test_hooks(hook):
    seen = []

    def call(x, w):
        y = functional.linear_relu(x, w)
        if hook == "tensor":
            y.register_hook(lambda grad: grad * 3)
        elif hook == "node before":
            y.grad_fn.register_prehook(lambda grads: (grads[0] * 3,))
        else:
            y.grad_fn.register_hook(lambda of_inputs, grads: seen.append(len(of_inputs)))
        return y.sum()

    check(call, torch.randn(5, 4), torch.randn(3, 4, requires_grad=True))
    assert hook != "node after" or seen == [3, 3, 3]


def test_hooks_on_saved_tensors():
    packed = []

    def pack(t):
        packed.append(t.shape)
        return t.numpy(force=True).copy()

    def call(x, w):
        with torch.autograd.graph.saved_tensors_hooks(pack, torch.from_numpy):
            return functional.linear(x, w, activation="gelu").sum()

    check(call, torch.randn(5, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True))
    assert packed


def second_order(call, tensors, compiled):
    leaves = [t.clone().requires_grad_(t.requires_grad) for t in tensors]
    wanted = [t for t in leaves if t.requires_grad]
    if compiled:
        with compiled_autograd._enable(compiler()):
            first = torch.autograd.grad(call(*leaves), wanted, create_graph=True)
    else:
        first = torch.autograd.grad(call(*leaves), wanted, create_graph=True)
    total = sum(g.square().sum() for g in first)
    return first, torch.autograd.grad(total, wanted, allow_unused=True)


@pytest.mark.parametrize("activation", [None, *functional.ACTIVATIONS])
@pytest.mark.parametrize("frozen", [(), ("w", "v"), ("x", "w"), ("b",), ("w", "b", "v")])
def test_twice_through_a_stack(activation, frozen):
    """create_graph, beside a first-order pass whose graph is in the cache."""

    def call(x, w, b, v):
        kind = {"activation": activation, "final_activation": "sigmoid"}
        return functional.mlp(x, [w, v], [b, None], **kind).square().sum()

    tensors = {
        "x": torch.randn(5, 4), "w": torch.randn(6, 4), "b": torch.randn(6), "v": torch.randn(3, 6)
    }  # fmt: skip
    for name, t in tensors.items():
        t.requires_grad_(name not in frozen)
    check(call, *tensors.values())
    expected = second_order(call, tensors.values(), False)
    for _ in range(2):
        torch.testing.assert_close(second_order(call, tensors.values(), True), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_twice_through_a_loss(name):
    for kwargs in LOSSES[name]:
        x, y = torch.randn(6, 3, requires_grad=True), torch.rand(6, 3)
        if name == "cross_entropy":
            y = torch.randint(3, (6,))

        def call(x, y=y, kwargs=kwargs):
            return getattr(functional, name)(x, y, **kwargs).sum() * 8

        check(call, x)
        expected = second_order(call, [x], False)
        for _ in range(2):
            torch.testing.assert_close(second_order(call, [x], True), expected)


def test_a_second_time_and_a_change_in_place():
    for call in (functional.linear_relu, lambda x, w: torch.relu(nn.functional.linear(x, w))):
        x, w = torch.randn(5, 4), torch.randn(3, 4, requires_grad=True)
        y = call(x, w).sum()
        with compiled_autograd._enable(compiler()):
            y.backward(retain_graph=True)
            y.backward()
            with pytest.raises(RuntimeError, match="a second time"):
                y.backward()
            y = call(x, w).sum()
            x.add_(1)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.backward()
