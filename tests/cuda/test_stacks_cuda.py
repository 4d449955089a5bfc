"""functional.mlp and the modules on CUDA: whole stacks against float64, frozen parts, modules
beside torch's own, and models that move between devices."""

import copy
import io

import pytest
import torch
from cases import (
    ACTIVATIONS,
    HALVES,
    KINKED,
    LEADING,
    check,
    dtypes,
    evaluate,
    relative_error,
    relayout,
    stack_tensors,
)
from on_device import DEVICE, IS_CUDA, check_on_device, cuda, cuda_only, to_device
from test_mlp import STACKS, pair, stacks
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from twins import ACTIVATION_MODULES

import mlp_ext
from mlp_ext import functional

pytestmark = cuda


def check_stack(label, x, parameters, activation, final=None, dy=None):
    if dy is None:
        dy = torch.randn(*x.shape[:-1], parameters[-2].shape[0], dtype=torch.float64).to(x.dtype)
    label = f"{label} {activation}, {final}"
    tensors = (x, *parameters)
    check_on_device(label, *pair(activation, final), tensors, dy, floor_eps=256)


@stacks
@dtypes("f64", "f32")
def test_stacks(dtype, stack):
    for i, activation in enumerate(ACTIVATIONS):
        x, parameters = stack_tensors(*stack, dtype, activation=activation)
        check_stack("", x, parameters, activation, activation if i % 2 else None)


@dtypes(*HALVES)
def test_stacks_of_16_bit_types(dtype):
    """No kinks: a rounded hidden layer moves the next one across."""
    for rows, sizes in (STACKS[0], (17, (33, 64, 49, 16)), (200, (128, 256, 128, 8))):
        for activation in (a for a in ACTIVATIONS if a not in KINKED):
            x, parameters = stack_tensors(rows, sizes, dtype, activation=activation)
            check_stack(str(sizes), x, parameters, activation)


# Widths of a stack that may stay in registers and shared memory, and batches of odd size.
@pytest.mark.parametrize("width", [16, 32, 64, 128])
@dtypes("f32", "bf16")
def test_stacks_of_equal_widths(dtype, width):
    for rows in (1, 63, 129, 1030 if IS_CUDA else 130):
        x, parameters = stack_tensors(rows, (width,) * 5, dtype, activation="tanh")
        check_stack(f"{rows} rows", x, parameters, "tanh")


def test_large_stack():
    x, parameters = stack_tensors(64, (300, 200, 100, 10), torch.float32, margin=1e-6)
    check_stack("relu", x, parameters, "relu")
    x, parameters = stack_tensors(1031, (65, 130, 5), torch.float32, activation="gelu")
    check_stack("gelu", x, parameters, "gelu", "sigmoid")


@pytest.mark.parametrize("leading", LEADING, ids=str)
def test_leading_dimensions(leading):
    x, parameters = stack_tensors(leading, (5, 7, 3), torch.float64, activation="silu")
    check_stack("", x, parameters, "silu")


@pytest.mark.parametrize("layout", ["transposed", "rows_apart", "columns_apart", "misaligned"])
def test_memory_layouts(layout):
    x, parameters = stack_tensors(33, (17, 48, 5), torch.float32, activation="tanh")
    laid_out = [relayout(t, layout) for t in (x, *parameters)]
    check_stack("", laid_out[0], laid_out[1:], "tanh", None, relayout(torch.randn(33, 5), layout))


def test_missing_biases():
    x, (w0, b0, w1, _) = stack_tensors(9, (5, 7, 3), torch.float64, activation="elu")
    for biases in ((None, None), (b0, None)):
        tensors = to_device(x, w0, w1)
        present = [b if b is None else b.to(DEVICE) for b in biases]

        def of(module, present=present):
            return lambda x, *w: module.mlp(x, w, present, activation="elu")

        dy = torch.randn(9, 3, dtype=torch.float64, device=DEVICE)
        check("", of(functional), of(mlp_ext.reference), tensors, dy)


def test_frozen_parts():
    """Each gradient left out in turn; the others are what they are with all of them."""
    x, parameters = stack_tensors(65, (33, 64, 49, 16), torch.float32)
    tensors = to_device(x, *parameters)
    dy = torch.randn(65, 16, device=DEVICE)
    full = evaluate(pair()[0], tensors, dy)
    for frozen in range(len(tensors)):
        leaves = [t.detach().requires_grad_(i != frozen) for i, t in enumerate(tensors)]
        wanted = [i for i in range(len(leaves)) if i != frozen]
        grads = torch.autograd.grad(pair()[0](*leaves), [leaves[i] for i in wanted], dy)
        for i, grad in zip(wanted, grads, strict=True):
            assert relative_error(grad, full[f"grad{i}"]) < 1e-5, (frozen, i)


def test_saved_for_backward():
    """Inputs and outputs of the layers, no masks: two layers of ReLU save x, two weights and the
    output of the first."""
    x, parameters = stack_tensors(8, (16, 48, 32), torch.float32)
    leaves = [t.requires_grad_() for t in to_device(x, *parameters)]
    packed = []
    with saved_tensors_hooks(lambda t: packed.append(t.shape) or t, lambda t: t):
        pair()[0](*leaves)
    numbers = sum(shape.numel() for shape in packed)
    assert numbers == 8 * 16 + 48 * 16 + 32 * 48 + 8 * 48


def test_changing_what_is_saved_raises():
    x, parameters = stack_tensors(4, (5, 6, 3), torch.float32)
    leaves = [t.requires_grad_() for t in to_device(x, *parameters)]
    y = pair()[0](*leaves)
    with torch.no_grad():
        leaves[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# ---- modules


def plain_model(name="gelu"):
    make = ACTIVATION_MODULES[name]
    return nn.Sequential(
        nn.Linear(9, 33), make(), nn.Linear(33, 17), make(), nn.LayerNorm(17), nn.Linear(17, 5)
    )


FORMS = {
    "fuse": lambda model: mlp_ext.fuse(copy.deepcopy(model)),
    "Sequential": lambda model: mlp_ext.nn.Sequential(*copy.deepcopy(model)),
    "unfused": lambda model: mlp_ext.unfuse(mlp_ext.fuse(copy.deepcopy(model))),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("activation", ACTIVATION_MODULES)
def test_modules_beside_torchs(form, activation):
    model = plain_model(activation).to(DEVICE)
    ours, x = FORMS[form](model), torch.randn(65, 9, device=DEVICE)
    assert list(ours.state_dict()) == list(model.state_dict())
    results = []
    for module in (ours, model):
        y = module(x)
        parameters = list(module.parameters())
        results.append([y, *torch.autograd.grad(y.square().sum(), parameters)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_modules_are_made_on_the_device():
    made = (
        mlp_ext.nn.Linear(9, 5, activation="relu", device=DEVICE, dtype=torch.float64),
        mlp_ext.nn.LinearReLU(9, 5, device=DEVICE, dtype=torch.float64),
        mlp_ext.nn.MLP([9, 7, 5], device=DEVICE, dtype=torch.float64),
    )
    for module in made:
        assert {(p.device.type, p.dtype) for p in module.parameters()} == {(DEVICE, torch.float64)}
        y = module(torch.randn(4, 9, device=DEVICE, dtype=torch.float64))
        assert y.device.type == DEVICE and y.shape == (4, 5)


def test_explain_and_hooks_are_as_on_the_cpu():
    model = mlp_ext.fuse(plain_model().to(DEVICE))
    on_cpu = mlp_ext.fuse(plain_model())
    assert str(mlp_ext.explain(model)) == str(mlp_ext.explain(on_cpu))
    seen = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.device.type))
    model(torch.randn(4, 9, device=DEVICE))
    assert seen == [DEVICE]


@cuda_only
def test_models_move_between_devices():
    """To and fro, as a state_dict through a file too: the results agree to rounding."""
    model, x = mlp_ext.fuse(plain_model()), torch.randn(65, 9)
    expected = model(x).detach()
    on_gpu = copy.deepcopy(model).to(DEVICE)
    torch.testing.assert_close(on_gpu(x.to(DEVICE)).cpu(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(on_gpu.cpu()(x), expected)
    file = io.BytesIO()
    torch.save(copy.deepcopy(model).to(DEVICE).state_dict(), file)
    file.seek(0)
    other = mlp_ext.fuse(plain_model())
    other.load_state_dict(torch.load(file, map_location="cpu"))
    assert torch.equal(other(x), expected)
