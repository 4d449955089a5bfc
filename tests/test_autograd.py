"""The rules of autograd, which fused layers must keep: who gets a gradient, what may change when.

Each test runs two layers, once as one `mlp` node ("stack") and once as two `linear` calls
("separate"), and expects what the reference does on the same tensors.
"""

import threading

import pytest
import torch
from cases import activations, assert_equal_to, evaluate, stack_tensors
from torch.utils.checkpoint import checkpoint

from mlp_ext import functional, reference

SIZES = (9, 17, 5)


def stack(module, activation, final):
    def run(x, w0, b0, w1, b1):
        return module.mlp(x, [w0, w1], [b0, b1], activation=activation, final_activation=final)

    return run


def separate(module, activation, final):
    def run(x, w0, b0, w1, b1):
        hidden = module.linear(x, w0, b0, activation=activation)
        return module.linear(hidden, w1, b1, activation=final)

    return run


@pytest.fixture(params=[stack, separate], ids=["stack", "separate"])
def pair(request):
    """make(activation, final) -> (ours, the reference), functions of (x, w0, b0, w1, b1)."""
    return lambda activation="relu", final=None: [
        request.param(module, activation, final) for module in (functional, reference)
    ]


def tensors(activation="relu", requires_grad=()):
    x, parameters = stack_tensors(6, SIZES, torch.float64, activation=activation)
    leaves = [x, *parameters]
    for i in requires_grad:
        leaves[i].requires_grad_()
    return leaves


def again(leaves):
    return [t.detach().clone().requires_grad_(t.requires_grad) for t in leaves]


@activations(("relu", "gelu"))
def test_every_subset_of_gradients(pair, activation):
    for subset in range(32):
        wanted = [i for i in range(5) if subset >> i & 1]
        leaves = tensors(activation, wanted)
        results = []
        for f in pair(activation, activation):
            mine = again(leaves)
            out = f(*mine)
            assert out.requires_grad == bool(wanted), wanted
            if wanted:
                out.backward(torch.ones_like(out))
            for i, t in enumerate(mine):
                assert (t.grad is not None) == (i in wanted), (wanted, i)
            grads = {f"grad{i}": mine[i].grad for i in wanted}
            results.append({"output": out.detach(), **grads})
        assert_equal_to(f"subset {wanted}", *results, 1e-12)


def test_no_grad_and_inference_mode(pair):
    ours, theirs = pair()
    leaves = tensors(requires_grad=range(5))
    expected = theirs(*leaves).detach()
    with torch.no_grad():
        out = ours(*leaves)
        assert not out.requires_grad and out.grad_fn is None
        torch.testing.assert_close(out, expected)
    with torch.inference_mode():
        out = ours(*leaves)
        assert out.is_inference()
        inference = leaves[0] * 1
    torch.testing.assert_close(out.clone(), expected)
    for f in (theirs, ours):
        with pytest.raises(RuntimeError, match="[Ii]nference tensors? cannot be saved"):
            f(inference, *leaves[1:])


def test_no_grad_inside_and_enable_grad_within(pair):
    for f in pair():
        leaves = tensors(requires_grad=[1])
        with torch.no_grad(), torch.enable_grad():
            assert f(*leaves).requires_grad


@activations()
def test_in_place_change_before_backward(pair, activation):
    """RuntimeError where PyTorch raises it; where PyTorch does not mind, neither do we."""
    for final in (None, activation):
        for place in range(6):
            for wanted in ([0, 1, 2, 3, 4], [1, 2, 3, 4]):
                leaves = tensors(activation, wanted)
                outcomes = []
                for f in pair(activation, final):
                    mine = again(leaves)
                    out = f(*mine)
                    loss = out.sum()
                    with torch.no_grad():
                        (*mine, out)[place].add_(1.0)
                    try:
                        grads = torch.autograd.grad(loss, [mine[i] for i in wanted])
                        outcomes.append({f"grad{i}": g for i, g in zip(wanted, grads, strict=True)})
                    except RuntimeError as error:
                        assert "modified by an inplace operation" in str(error)
                        outcomes.append("raises")
                name = ("x", "w0", "b0", "w1", "b1", "output")[place]
                label = f"{activation}, {final}: {name} changed, gradients of {wanted}"
                if "raises" in outcomes:
                    assert outcomes[0] == outcomes[1], f"{label}: only one of the two raises"
                else:
                    assert_equal_to(label, *outcomes, 1e-12)


def test_hidden_layers_may_be_updated_after_backward(pair):
    """The usual loop: forward, backward, change the weights in place, again."""
    results = []
    for f in pair():
        torch.manual_seed(1)
        leaves = tensors(requires_grad=range(1, 5))
        for _ in range(3):
            f(*leaves).square().sum().backward()
            with torch.no_grad():
                for t in leaves[1:]:
                    t.sub_(0.01 * t.grad)
                    t.grad = None
        results.append({f"parameter{i}": t.detach() for i, t in enumerate(leaves)})
    assert_equal_to("", *results, 1e-12)


def test_backward_twice(pair):
    for f in pair():
        leaves = tensors(requires_grad=range(5))
        out = f(*leaves)
        out.sum().backward(retain_graph=True)
        first = [t.grad.clone() for t in leaves]
        out.sum().backward()
        for t, g in zip(leaves, first, strict=True):
            torch.testing.assert_close(t.grad, 2 * g)
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            out.sum().backward()


def test_shared_parameters(pair):
    """One tensor in several roles: tied weights, the input as weight, two calls in one graph."""
    w = torch.randn(7, 7, dtype=torch.float64)
    b = torch.randn(7, dtype=torch.float64)
    uses = (
        lambda f, w, b: f(w, w, b, w, b),
        lambda f, w, b: f(b.expand(3, 7), w, b, w.t(), None),
        lambda f, w, b: f(f(w, w, b, w, None), w, b, w, b),
    )
    for use in uses:
        results = []
        for f in pair("tanh"):
            leaves = again([w.requires_grad_(), b.requires_grad_()])
            out = use(f, *leaves)
            grads = torch.autograd.grad(out.square().sum(), leaves)
            results.append({"output": out.detach(), "dw": grads[0], "db": grads[1]})
        assert_equal_to("shared", *results, 1e-12)


def test_hooks_on_tensors_and_retain_grad(pair):
    results = []
    for f in pair():
        torch.manual_seed(1)
        leaves = tensors(requires_grad=range(5))
        leaves[1].register_hook(lambda g: 3 * g)
        out = f(*leaves)
        out.retain_grad()
        out.register_hook(lambda g: g.clamp(max=0.5))
        out.square().sum().backward()
        results.append({f"grad{i}": t.grad for i, t in enumerate((*leaves, out))})
    assert_equal_to("", *results, 1e-12)


def test_saved_tensors_may_leave_and_come_back(pair):
    """Hooks that keep other objects than they were given, as save_on_cpu and compression do."""
    results = []
    for f in pair("silu", "sigmoid"):
        torch.manual_seed(1)
        leaves = tensors("silu", range(5))
        hooks = (lambda t: t.numpy().copy(), torch.from_numpy)
        with torch.autograd.graph.saved_tensors_hooks(*hooks):
            out = f(*leaves)
        out.sum().backward()
        results.append({f"grad{i}": t.grad for i, t in enumerate(leaves)})
    assert_equal_to("", *results, 1e-12)


def test_checkpoint(pair):
    results = []
    for f in pair("gelu"):
        torch.manual_seed(1)
        leaves = tensors("gelu", range(5))
        checkpoint(f, *leaves, use_reentrant=False).sum().backward()
        results.append({f"grad{i}": t.grad for i, t in enumerate(leaves)})
    assert_equal_to("", *results, 1e-12)


def test_results_share_no_memory(pair):
    """A gradient changed in place (clipping) must change no other, no input, nothing saved."""
    for activation in (None, "relu", "gelu"):
        leaves = tensors(activation, range(5))
        out = pair(activation, activation)[0](*leaves)
        dy = torch.ones_like(out)
        grads = torch.autograd.grad(out, leaves, dy, retain_graph=True)
        every = [*leaves, out, dy, *grads]
        pointers = [t.untyped_storage().data_ptr() for t in every]
        assert len(set(pointers)) == len(pointers), activation
        before = [g.clone() for g in grads]
        for g in grads:
            g.zero_()
        for g, h in zip(torch.autograd.grad(out, leaves, dy), before, strict=True):
            assert torch.equal(g, h)


def test_inputs_are_left_alone(pair):
    leaves = tensors(requires_grad=range(5))
    copies = [t.detach().clone() for t in leaves]
    dy = torch.randn(6, 5, dtype=torch.float64)
    dy_copy = dy.clone()
    pair("elu", "elu")[0](*leaves).backward(dy)
    for t, copy in zip((*leaves, dy), (*copies, dy_copy), strict=True):
        assert torch.equal(t, copy) and t._version == 0


def test_several_python_threads_at_once(pair):
    """No hidden buffer is shared between calls that run at the same time."""
    ours = pair("gelu", "gelu")[0]
    inputs = [stack_tensors(33, (65, 48, 31), torch.float32, activation=None) for _ in range(4)]

    def results(i):
        x, parameters = inputs[i]
        return evaluate(ours, (x, *parameters), torch.ones(33, 31))

    expected = [results(i) for i in range(4)]
    wrong = []

    def work(i):
        for _ in range(50):
            for name, value in results(i).items():
                if not torch.equal(value, expected[i][name]):
                    wrong.append((i, name))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_tensor_subclass(pair):
    """As through F.linear, the class of the arguments reaches the result."""

    class Tagged(torch.Tensor):
        pass

    leaves = tensors()
    leaves[0] = leaves[0].as_subclass(Tagged)
    ours, theirs = (f(*leaves) for f in pair())
    assert type(ours) is type(theirs) is Tagged
    torch.testing.assert_close(ours.as_subclass(torch.Tensor), theirs.as_subclass(torch.Tensor))
    parameters = [torch.nn.Parameter(t) for t in tensors()]
    assert type(pair()[0](*parameters)) is torch.Tensor


def test_an_unpack_hook_that_returns_another_shape_is_refused():
    """The kernels read where the saved tensors lie: no hook may make them read beyond."""
    x, w = torch.randn(30, 20, requires_grad=True), torch.randn(70, 20, requires_grad=True)
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t[:1, :1].clone())
    with hooks:
        out = functional.linear_relu(x, w)
    with pytest.raises(RuntimeError, match="shape"):
        out.sum().backward()
