"""torch.library.opcheck of every registered op: schema, autograd, fake kernel, AOT dispatch."""

import inspect

import pytest
import torch
from cases import dtypes, stack_tensors

from mlp_ext import functional
from mlp_ext._ops import LOSS_CODES

OPS = torch.ops.mlp_ext
RELU, GELU, SIGMOID, NONE = (
    functional.activation_code(name) for name in ("relu", "gelu", "sigmoid", None)
)


def mlp_samples(dtype=torch.float64):
    """(input, weights, biases, activations), with and without gradients, biases and layers."""
    for rows, sizes, codes, wanted in (
        (4, (5, 3), [RELU], "xwb"),
        (4, (5, 3), [NONE], "xwb"),
        (7, (5, 6, 3), [GELU, NONE], "xwb"),
        ((2, 3), (5, 6, 4, 3), [RELU, SIGMOID, GELU], "xwb"),
        (4, (5, 6, 3), [RELU, NONE], "wb"),
        (4, (5, 6, 3), [RELU, RELU], "x"),
        ((), (5, 6, 3), [RELU, NONE], "xw"),
        (4, (5, 6, 3), [RELU, NONE], ""),
    ):
        for bias in (True, False):
            x, parameters = stack_tensors(rows, sizes, dtype, bias=bias)
            weights, biases = parameters[::2], parameters[1::2]
            x.requires_grad_("x" in wanted)
            for w, b in zip(weights, biases, strict=True):
                w.requires_grad_("w" in wanted)
                if bias:
                    b.requires_grad_("b" in wanted)
            yield x, weights, biases, codes
    # One bias of two missing, and rows that do not lie together.
    x, (w0, b0, w1, _) = stack_tensors(4, (5, 6, 3), dtype)
    yield x.t().contiguous().t().requires_grad_(), [w0, w1], [b0, None], [RELU, NONE]


def cross_entropy_samples(dtype=torch.float64):
    """(input, target, weight, reduction, ignore_index, label_smoothing)."""
    for reduction in (0, 1, 2):
        for smoothing in (0.0, 0.1):
            for weight in (None, torch.rand(5, dtype=dtype)):
                logits = torch.randn(4, 5, dtype=dtype, requires_grad=reduction != 2)
                yield logits, torch.tensor([0, 4, 2, 1]), weight, reduction, 2, smoothing
    vector = torch.randn(5, dtype=dtype, requires_grad=True)
    yield vector, torch.tensor(3), None, 1, -100, 0.0
    yield vector, vector.detach().softmax(0), None, 0, -100, 0.1
    images = torch.randn(2, 5, 3, 4, dtype=dtype)
    by_pixel = images.to(memory_format=torch.channels_last)
    for logits in (images, by_pixel, images[..., :1], images.permute(0, 3, 2, 1)[:, :, :, :1]):
        logits = logits.detach().requires_grad_()
        indices = torch.randint(logits.shape[1], (logits.shape[0], *logits.shape[2:]))
        for target in (indices, logits.detach().softmax(1)):
            for reduction in (0, 1):
                yield logits, target, None, reduction, -100, 0.1


def elementwise_samples(dtype=torch.float64):
    """(input, target, weight, pos_weight, kind, reduction, parameter)."""
    bce, huber = LOSS_CODES["bce_with_logits"], LOSS_CODES["huber"]
    for name, kind in LOSS_CODES.items():
        for reduction in (0, 1, 2):
            if name == "bce":
                continue
            x, y = torch.randn(4, 5, dtype=dtype), torch.rand(4, 5, dtype=dtype)
            yield x, y, None, None, kind, reduction, 0.5
            yield x.clone().requires_grad_(), y, None, None, kind, reduction, 0.5
            if kind != bce:
                yield x, y.clone().requires_grad_(), None, None, kind, reduction, 0.5
            yield x.t().clone().t().requires_grad_(), y, None, None, kind, reduction, 0.5
    x, y = torch.randn(4, 5, dtype=dtype, requires_grad=True), torch.rand(4, 5, dtype=dtype)
    yield x, y, torch.rand(5, dtype=dtype), torch.rand(5, dtype=dtype), bce, 0, 0.0
    yield x, y, torch.rand(4, 1, dtype=dtype), torch.rand(1, dtype=dtype), bce, 1, 0.0
    yield x, y, torch.rand(4, 5, dtype=dtype), None, huber, 1, 2.0
    yield x[0, 0].detach().requires_grad_(), y[0, 0], None, None, bce, 1, 0.0


def detached(sample):
    return tuple(
        [None if e is None else e.detach() for e in t]
        if isinstance(t, list) and any(torch.is_tensor(e) for e in t)
        else t.detach()
        if torch.is_tensor(t)
        else t
        for t in sample
    )


def backward_samples():
    """(grad, input, weights, saved, activations, wanted): see the schema for saved and wanted."""
    for x, weights, biases, codes in map(detached, mlp_samples()):
        output, *saved = OPS._mlp_forward(x, weights, biases, codes)
        if codes[-1] in (RELU, SIGMOID):
            saved.append(output)
        layers = len(weights)
        for wanted in (range(1 + 2 * layers), [0], [1], [2 * layers]):
            yield torch.randn_like(output), x, weights, saved, codes, list(wanted)


SAMPLES = {
    "mlp": mlp_samples,
    "cross_entropy": cross_entropy_samples,
    "_mlp_forward": lambda: map(detached, mlp_samples()),
    "_cross_entropy_forward": lambda: map(detached, cross_entropy_samples()),
    "elementwise_loss": elementwise_samples,
    "_elementwise_loss_forward": lambda: map(detached, elementwise_samples()),
    "_mlp_backward": backward_samples,
}


def test_every_op_is_checked():
    names = torch._C._dispatch_get_all_op_names()
    registered = {n.split("::")[1].split(".")[0] for n in names if n.startswith("mlp_ext::")}
    assert registered == set(SAMPLES)


@pytest.mark.parametrize("op", SAMPLES)
def test_opcheck(op):
    for sample in SAMPLES[op]():
        torch.library.opcheck(getattr(OPS, op).default, sample)


@dtypes("f32", "bf16", "f16")
def test_opcheck_of_other_dtypes(dtype):
    """Metadata of results; their values in these types are compared elsewhere, with more care."""
    parts = ("test_schema", "test_autograd_registration", "test_faketensor")
    for samples, op in (
        (mlp_samples, OPS.mlp),
        (cross_entropy_samples, OPS.cross_entropy),
        (elementwise_samples, OPS.elementwise_loss),
    ):
        for sample in samples(dtype):
            torch.library.opcheck(op.default, sample, test_utils=parts)


def test_ops_equal_the_functions():
    """torch.ops, which compiled programs call, and the Python functions, which eager ones call."""
    x, (w0, b0, w1, b1) = stack_tensors(9, (5, 6, 3), torch.float32)
    eager = functional.mlp(x, [w0, w1], [b0, b1], activation="gelu", final_activation="relu")
    assert torch.equal(OPS.mlp(x, [w0, w1], [b0, b1], [GELU, RELU]), eager)
    target = torch.arange(9) % 3
    for name, code in (("none", 0), ("mean", 1), ("sum", 2)):
        eager_loss = functional.cross_entropy(eager, target, reduction=name)
        assert torch.equal(OPS.cross_entropy(eager, target, None, code, -100, 0.0), eager_loss)
    for sample in elementwise_samples():
        x, y, weight, pos_weight, kind, reduction, parameter = sample
        options = {"weight": weight, "pos_weight": pos_weight, "delta": parameter}
        name = next(n for n, code in LOSS_CODES.items() if code == kind)
        name = {"bce_with_logits": "binary_cross_entropy_with_logits"}.get(name, f"{name}_loss")
        options["beta"] = parameter
        taken = inspect.signature(getattr(functional, name)).parameters
        eager_loss = getattr(functional, name)(
            x,
            y,
            reduction=("none", "mean", "sum")[reduction],
            **{k: v for k, v in options.items() if k in taken},
        )
        assert torch.equal(OPS.elementwise_loss(*sample), eager_loss)


def test_codes_that_are_none():
    """What exported programs of other versions may carry is refused, not run as something else."""
    x = torch.randn(4, 5)
    for kind in (-1, LOSS_CODES["bce"], len(LOSS_CODES), 99):
        for leaf in (x, x.clone().requires_grad_()):
            with pytest.raises(ValueError, match="code"):
                OPS.elementwise_loss(leaf, x, None, None, kind, 1, 1.0)
    with pytest.raises(ValueError, match="pos_weight"):
        OPS.elementwise_loss(x, x, None, torch.ones(5), LOSS_CODES["mse"], 1, 1.0)
    with pytest.raises(ValueError, match="weight"):
        OPS.elementwise_loss(x, x, x, None, LOSS_CODES["smooth_l1"], 1, 1.0)
    with pytest.raises(ValueError, match="reduction"):
        OPS.elementwise_loss(x, x, None, None, LOSS_CODES["mse"], 3, 1.0)
