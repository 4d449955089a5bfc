"""What wraps a forward or a backward pass: checkpointing by policy, anomaly detection, hooks on
several gradients, mutation of what is saved, and a tensor function mode."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd import graph
from torch.distributed.algorithms._checkpoint import checkpoint_wrapper
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)

import mlp_ext

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.SiLU(), nn.Dropout(0.3), nn.Linear(8, 3)
    )


def gradients(model, call):
    torch.manual_seed(5)
    call(model).square().sum().backward()
    return [p.grad for p in model.parameters()]


def keep_products(context, op, *args, **kwargs):
    return CheckpointPolicy.MUST_SAVE if op in PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE


def keep_layers(context, op, *args, **kwargs):
    kept = op in PRODUCTS or op.namespace == "mlp_ext"
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def by_policy(policy):
    contexts = partial(create_selective_checkpoint_contexts, policy)
    return lambda model: gradients(
        model, lambda m: checkpoint(m, X, use_reentrant=False, context_fn=contexts)
    )


def in_segments(model):
    x = X.clone().requires_grad_()
    return gradients(model, lambda m: checkpoint_sequential(m, 2, x, use_reentrant=False))


def each_linear(model):
    checkpoint_wrapper.apply_activation_checkpointing(
        model, check_fn=lambda child: isinstance(child, nn.Linear)
    )
    return gradients(model, lambda m: m(X))


def anomalies(model):
    with torch.autograd.detect_anomaly(check_nan=True):
        return gradients(model, lambda m: m(X))


def no_saved_hooks(model):
    with graph.disable_saved_tensors_hooks("none are allowed"):
        return gradients(model, lambda m: m(X))


def mutated(model):
    def call(model):
        output = model(X)
        with torch.no_grad():
            model[2].weight.mul_(2)
        return output

    with graph.allow_mutation_on_saved_tensors():
        return gradients(model, call)


def several_at_once(model):
    seen = []
    graph.register_multi_grad_hook(
        list(model.parameters()), lambda grads: seen.append([g.clone() for g in grads])
    )
    gradients(model, lambda m: m(X))
    assert len(seen) == 1
    return seen[0]


def a_function_mode(model):
    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    with Mode():
        return gradients(model, lambda m: m(X))


TOOLS = {
    **{f"checkpoint, {f.__name__}": by_policy(f) for f in (keep_products, keep_layers)},
    **{
        f.__name__: f
        for f in (
            in_segments, each_linear, anomalies, no_saved_hooks, mutated, several_at_once,
            a_function_mode,
        )
    },
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Anomaly Detection:UserWarning")
@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
def test_the_same_gradients(tool):
    torch.testing.assert_close(tool(mlp_ext.fuse(net())), tool(net()))


@pytest.mark.filterwarnings("ignore:Anomaly Detection:UserWarning")
@pytest.mark.filterwarnings("ignore:Error detected in:UserWarning")
def test_a_nan_in_backward_is_told():
    model = mlp_ext.fuse(net())
    with torch.no_grad():
        model[0].weight.fill_(float("inf"))
    with torch.autograd.detect_anomaly():
        x = X.clone().requires_grad_()
        loss = model(x).sum()
        with pytest.raises(RuntimeError, match="returned nan values"):
            loss.backward()
