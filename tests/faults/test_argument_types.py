"""Arguments of a wrong type: PyTorch's type of error, which names the argument; codes and options
that are out of range, at the registered operators too."""

import pytest
import torch
import torch.nn.functional as F

import mlp_ext
from mlp_ext import _C, functional

X, Y, W = torch.randn(4, 3), torch.rand(4, 3), torch.randn(2, 3)


@pytest.mark.parametrize(
    "name, options",
    [
        ("cross_entropy", {"label_smoothing": "a"}),
        ("cross_entropy", {"label_smoothing": None}),
        ("cross_entropy", {"ignore_index": 1.5}),
        ("cross_entropy", {"ignore_index": "1"}),
        ("cross_entropy", {"weight": [1.0, 1.0, 1.0]}),
        ("cross_entropy", {"reduction": 3}),
        ("cross_entropy", {"reduction": ["mean"]}),
        ("cross_entropy", {"reduction": "average"}),
        ("mse_loss", {"reduction": None}),
        ("huber_loss", {"delta": "a"}),
        ("huber_loss", {"delta": None}),
        ("smooth_l1_loss", {"beta": None}),
        ("smooth_l1_loss", {"beta": "1"}),
        ("binary_cross_entropy_with_logits", {"weight": 2.0}),
        ("binary_cross_entropy_with_logits", {"pos_weight": 2.0}),
    ],
)
def test_options_of_losses(name, options):
    errors = []
    for module in (functional, F):
        with pytest.raises(Exception) as info:
            getattr(module, name)(X, Y, **options)
        errors.append(info)
    (option,) = options
    assert errors[0].type is errors[1].type
    assert option in str(errors[0].value)


@pytest.mark.parametrize("name", ["cross_entropy", "mse_loss", "binary_cross_entropy_with_logits"])
@pytest.mark.parametrize("what", ["input", "target"])
def test_what_is_no_tensor(name, what):
    arguments = {"input": X, "target": Y} | {what: [1.0]}
    errors = []
    for module in (functional, F):
        with pytest.raises(Exception) as info:
            getattr(module, name)(**arguments)
        errors.append(info)
    assert errors[0].type is errors[1].type
    assert what in str(errors[0].value) or "list" in str(errors[0].value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((X.numpy(), W), "linear: input must be a Tensor, not ndarray"),
        ((X, [1.0]), "linear: weight must be a Tensor, not list"),
        ((X, W, 1.0), "linear: bias must be a Tensor or None, not float"),
    ],
)
def test_of_a_layer(arguments, message):
    with pytest.raises(TypeError, match=message):
        functional.linear(*arguments)


def test_of_a_stack():
    with pytest.raises(TypeError, match=r"mlp: weights\[1\] must be a Tensor, not NoneType"):
        functional.mlp(X, [W, None], None)
    with pytest.raises(TypeError, match=r"mlp: biases\[0\] must be a Tensor or None, not int"):
        functional.mlp(X, [W], [3])


def test_another_type_error_is_left_as_it_is():
    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            raise TypeError("of the mode")

    with Mode():
        for call in (
            lambda: functional.linear(X, W),
            lambda: functional.mlp(X, [W], None),
            lambda: functional.mse_loss(X, Y),
            lambda: functional.cross_entropy(X, Y),
        ):
            with pytest.raises(TypeError, match="of the mode"):
                call()


@pytest.mark.parametrize("code", [-1, len(_C.ACTIVATIONS), 2**32, 2**32 + 1, 2**62])
def test_activation_codes(code):
    x = X.clone().requires_grad_()
    for call in (
        lambda: torch.ops.mlp_ext.mlp(x, [W], [None], [code]),
        lambda: torch.ops.mlp_ext._mlp_forward(X, [W], [None], [code]),
        lambda: torch.ops.mlp_ext._mlp_backward(X, X, [W], [], [code], [0]),
        lambda: torch.ops.mlp_ext.mlp(X.to(torch.complex64), [W], [None], [code]),
        lambda: _C.mlp(X, [W], [None], [code]),
        lambda: _C.linear(X, W, None, code),
        lambda: torch.func.vmap(lambda x: torch.ops.mlp_ext.mlp(x, [W], [None], [code]))(X),
    ):
        with pytest.raises(ValueError, match="activation code"):
            call()


@pytest.mark.parametrize("code", [-1, len(_C.ACTIVATIONS), 2**31 - 1])
def test_the_activation_code_of_a_layer_of_a_step(code):
    with pytest.raises(ValueError, match="activation code"):
        _C.LayerSpec("map", "0", torch.nn.ReLU(), code, None)


@pytest.mark.parametrize("code", [-1, 3, 2**32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.int64])
def test_reduction_codes(code, dtype):
    x, ops = X.to(dtype), torch.ops.mlp_ext
    for leaf in (x, X.clone().requires_grad_()):
        with pytest.raises(ValueError, match="reduction"):
            ops.cross_entropy(leaf, Y, None, code, -100, 0.0)
        with pytest.raises(ValueError, match="reduction"):
            ops.elementwise_loss(leaf, Y, None, None, 0, code, 0.0)


@pytest.mark.parametrize("code", [-1, _C.LOSSES.index("bce"), len(_C.LOSSES), 2**32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_loss_codes(code, dtype):
    for leaf in (X.to(dtype), X.clone().requires_grad_()):
        with pytest.raises(ValueError, match="loss code"):
            torch.ops.mlp_ext.elementwise_loss(leaf, Y, None, None, code, 1, 0.0)
    with pytest.raises(ValueError, match="loss code"):
        torch.func.grad(
            lambda x: torch.ops.mlp_ext.elementwise_loss(x, Y, None, None, code, 1, 0.0)
        )(X)


def test_numbers_that_torch_takes():
    """NumPy's and 0-dimensional tensors, as at torch.nn.functional."""
    np = pytest.importorskip("numpy")
    y = torch.tensor([0, 1, 2, 1])
    for module in (functional, F):
        one = module.cross_entropy(X, y, ignore_index=np.int64(1), label_smoothing=np.float32(0.5))
        two = module.cross_entropy(X, y, ignore_index=1, label_smoothing=0.5)
        assert torch.equal(one, two)
    for value in (np.float64(0.5), torch.tensor(0.5), 1, True):
        found = functional.huber_loss(X, Y, delta=value)
        torch.testing.assert_close(found, F.huber_loss(X, Y, delta=value))
    assert mlp_ext.functional is functional
