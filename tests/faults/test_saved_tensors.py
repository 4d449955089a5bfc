"""What a graph keeps between forward and backward, and what may be done to it: changes in place,
hooks that pack and unpack, second passes, threads, anomaly mode, hooks and edges of nodes."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import graph
from torch.overrides import BaseTorchFunctionMode
from torch.utils.checkpoint import CheckpointError, checkpoint

import mlp_ext
from mlp_ext import functional

TENSORS = {"x": (5, 4), "w": (6, 4), "b": (6,), "v": (3, 6)}


def made(requires_grad=TENSORS):
    return {name: torch.randn(TENSORS[name]).requires_grad_(name in requires_grad)
            for name in TENSORS}  # fmt: skip


def ours(x, w, b, v, activation="tanh"):
    return functional.mlp(x, [w, v], [b, None], activation=activation)


def plain(x, w, b, v, activation="tanh"):
    return F.linear(functional.reference.activate(F.linear(x, w, b), activation), v)


def outcome(call, tensors, change, create_graph=False):
    leaves = {k: t.detach().clone().requires_grad_(t.requires_grad) for k, t in tensors.items()}
    y = call(**leaves).square().sum()
    with torch.no_grad():
        change(leaves)
    wanted = [t for t in leaves.values() if t.requires_grad]
    try:
        return torch.autograd.grad(y, wanted, create_graph=create_graph)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
        return None


@pytest.mark.parametrize("changed", TENSORS)
@pytest.mark.parametrize("trainable", [1, 2, 4, 8, 6, 9, 12, 15])
@pytest.mark.parametrize("activation", ["relu", "gelu", None])
def test_changed_in_place(changed, trainable, activation):
    """As PyTorch: an error where backward reads it, and nowhere else."""
    names = [name for i, name in enumerate(TENSORS) if trainable >> i & 1]
    tensors = made(names)
    found, expected = (
        outcome(
            lambda call=call, **t: call(**t, activation=activation),
            tensors,
            lambda leaves: leaves[changed].add_(1),
        )
        for call in (ours, plain)
    )
    assert (found is None) == (expected is None)
    if found is not None:
        torch.testing.assert_close(found, expected)


def test_a_view_is_changed_in_place():
    base = torch.randn(2, 5, 4)
    w = torch.randn(6, 4, requires_grad=True)
    for call in (functional.linear, F.linear):
        y = call(base[0], w).sum()
        base[1].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward()


def test_mutation_is_allowed():
    tensors, results = made(), []
    for call in (ours, plain):
        leaves = {k: t.detach().clone().requires_grad_() for k, t in tensors.items()}
        with graph.allow_mutation_on_saved_tensors():
            y = call(**leaves).square().sum()
            with torch.no_grad():
                for t in leaves.values():
                    t.add_(1)
            results.append(torch.autograd.grad(y, list(leaves.values())))
    torch.testing.assert_close(*results)


class Box:
    def __init__(self, t):
        self.t = t.clone()


UNPACK = {
    "the same": (lambda t: t, lambda t: t),
    "a copy": (lambda t: t.clone(), lambda t: t.clone()),
    "a box": (Box, lambda box: box.t),
    "turned": (lambda t: t.movedim(0, -1).contiguous(), lambda t: t.movedim(-1, 0)),
    "bfloat16": (lambda t: (t.dtype, t.bfloat16()), lambda pair: pair[1].to(pair[0])),
}


@pytest.mark.parametrize("how", UNPACK)
def test_hooks_pack_and_unpack(how):
    tensors, results = made(), []
    target = torch.rand(5, 3)
    for call, loss in ((ours, functional.mse_loss), (plain, F.mse_loss)):
        leaves = {k: t.detach().clone().requires_grad_() for k, t in tensors.items()}
        with graph.saved_tensors_hooks(*UNPACK[how]):
            value = loss(call(**leaves), target)
        for _ in range(2):
            results.append(torch.autograd.grad(value, list(leaves.values()), retain_graph=True))
    kwargs = {"atol": 3e-2, "rtol": 5e-2} if how == "bfloat16" else {}
    torch.testing.assert_close(results[0], results[2], **kwargs)
    torch.testing.assert_close(results[0], results[1])


def test_what_a_hook_keeps_is_not_written_to():
    """The tensors that a hook packed are the user's: no pass scales or hands out one of them."""
    kept = []

    def pack(t):
        kept.append((t, t.clone()))
        return len(kept) - 1

    x = torch.randn(5, 3, requires_grad=True)
    for factor in (1.0, 3.0):
        with graph.saved_tensors_hooks(pack, lambda i: kept[i][0]):
            loss = functional.mse_loss(x, torch.rand(5, 3))
        (gradient,) = torch.autograd.grad(loss * factor, x)
        gradient.add_(1)
        for now, then in kept:
            assert torch.equal(now, then)


def test_on_the_cpu_and_no_hooks_at_all():
    tensors = made()
    expected = torch.autograd.grad(ours(**tensors).sum(), list(tensors.values()))
    for context in (graph.save_on_cpu(), graph.disable_saved_tensors_hooks("none")):
        with context:
            y = ours(**tensors).sum()
        torch.testing.assert_close(torch.autograd.grad(y, list(tensors.values())), expected)


@pytest.mark.parametrize("made_again", [False, True])
def test_a_second_and_a_third_time(made_again):
    tensors = made()
    y = functional.mse_loss(ours(**tensors), torch.rand(5, 3))
    leaves = list(tensors.values())
    first = torch.autograd.grad(y, leaves, retain_graph=True)
    copies = [g.clone() for g in first]
    for g in first:
        g.zero_()
    second = torch.autograd.grad(y, leaves, retain_graph=made_again)
    torch.testing.assert_close(second, tuple(copies))
    if made_again:
        torch.testing.assert_close(torch.autograd.grad(y, leaves), tuple(copies))
    for create_graph in (False, True):
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            torch.autograd.grad(y, leaves, create_graph=create_graph)


def test_a_frozen_layer_a_second_time_with_create_graph():
    """Its weight is not saved; after the first pass it is gone all the same."""
    tensors = made(["v"])
    y = ours(**tensors).square().sum()
    torch.autograd.grad(y, tensors["v"], retain_graph=True)
    torch.autograd.grad(y, tensors["v"])
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(y, tensors["v"], create_graph=True)


def test_threads_share_a_graph():
    tensors = made()
    leaves = list(tensors.values())
    y = functional.mse_loss(ours(**tensors), torch.rand(5, 3))
    expected = torch.autograd.grad(y, leaves, retain_graph=True)
    results = [None] * 4

    def work(i):
        for _ in range(20):
            results[i] = torch.autograd.grad(y, leaves, retain_graph=True)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        torch.testing.assert_close(result, expected)


INFINITE = torch.full((4, 4), float("inf"))


@pytest.mark.filterwarnings("ignore:Anomaly Detection:UserWarning")
@pytest.mark.filterwarnings("ignore:Error detected in:UserWarning")
@pytest.mark.parametrize(
    "name, call",
    [
        ("MlpBackward", lambda x: functional.linear_relu(x.abs(), INFINITE).sum() * 0),
        ("CrossEntropyBackward", lambda x: functional.cross_entropy(x * INFINITE, torch.arange(4))),
        ("ElementwiseLossBackward", lambda x: functional.mse_loss(x * INFINITE, INFINITE)),
    ],
)
def test_anomaly_mode_names_the_node(name, call):
    x = torch.randn(4, 4, requires_grad=True)
    with torch.autograd.detect_anomaly():
        y = call(x)
        with pytest.raises(RuntimeError, match=f"'{name}' returned nan values"):
            y.backward()


def test_edges_and_hooks_of_nodes():
    tensors = made()
    y = ours(**tensors)
    edge = graph.get_gradient_edge(y)
    assert edge.node.name() == "MlpBackward" and edge.output_nr == 0
    expected = torch.autograd.grad(y.sum() * 2, list(tensors.values()), retain_graph=True)
    through_edge = torch.autograd.grad(
        edge, list(tensors.values()), grad_outputs=torch.full_like(y, 2), retain_graph=True
    )
    torch.testing.assert_close(through_edge, expected)
    of_x = graph.get_gradient_edge(tensors["x"])
    torch.testing.assert_close(
        torch.autograd.grad(y.sum() * 2, of_x, retain_graph=True)[0], expected[0]
    )

    seen = []
    before = y.grad_fn.register_prehook(lambda grads: (grads[0] * 2,))
    after = y.grad_fn.register_hook(lambda of_inputs, grads: seen.append(len(of_inputs)))
    torch.testing.assert_close(
        torch.autograd.grad(y.sum(), list(tensors.values()), retain_graph=True), expected
    )
    before.remove()
    after.remove()
    assert seen == [5] and y.grad_fn.metadata == {}


def test_a_target_that_wants_a_gradient():
    for name in ("mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss", "cross_entropy",
                 "binary_cross_entropy_with_logits"):  # fmt: skip
        x, y = torch.randn(4, 3), torch.rand(4, 3)
        results = []
        for module in (functional, F):
            leaves = [x.clone().requires_grad_(), y.clone().requires_grad_()]
            getattr(module, name)(*leaves).backward()
            results.append([t.grad for t in leaves])
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("mode", [BaseTorchFunctionMode, lambda: torch.device("cpu")])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_mode_ends_before_the_recomputation(mode, use_reentrant):
    """backward() leaves function modes. What is fused then saves other tensors than PyTorch's
    functions did under the mode, and the checkpoint that compares them raises."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    results = []
    for own in (False, True):
        if own:
            mlp_ext.fuse(model)
        x = torch.ones(5, 4, requires_grad=True)
        with mode():
            loss = checkpoint(model, x, use_reentrant=use_reentrant).square().sum()
            if own and mode is BaseTorchFunctionMode and not use_reentrant:
                with pytest.raises(CheckpointError):
                    loss.backward()
                return
            loss.backward()
        results.append(x.grad)
    torch.testing.assert_close(*results)
