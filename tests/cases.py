"""Named shapes, memory layouts, tensors and yardsticks that the tests share.

Shapes are (M, N, K) of Y[M, N] = X[M, K] W[N, K]^T + b[N]; ids read `avx512-f32-M7_N33_K129`.
"""

import inspect
import math

import pytest
import torch

from mlp_ext import reference

DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
}
HALVES = ("bf16", "f16")
ACTIVATIONS = (None, *reference.ACTIVATIONS)
KINKED = ("relu", "leaky_relu")  # the derivative jumps at 0

# Around the tile sizes MR and NR that an ISA may have (1, 4, 6, 8, 12, 14, 16, 32, 48, 64). Strides
# coprime to the length walk the three columns, so that each edge appears as M, as N and as K.
_EDGES = (1, 2, 3, 4, 6, 7, 8, 13, 14, 15, 16, 17, 29, 31, 32, 33, 47, 48, 49, 63, 64, 65, 5)
_TILES = [(m, _EDGES[(7 * i + 3) % 23], _EDGES[(11 * i + 9) % 23]) for i, m in enumerate(_EDGES)]
_CORNERS = [(1, 1, 1), (1, 1, 65), (1, 65, 1), (65, 1, 1), (1, 48, 33), (14, 32, 2), (8, 12, 64)]
# Around KC (256, 384) and the other cache blocks; the last ones are split between threads. Rows of
# 4 KiB (K=1024 in float32, 512 in float64) are packed where others are read in place.
_DEEP = [(5, 17, 255), (14, 32, 256), (7, 49, 257), (1, 33, 385), (29, 1, 513), (13, 16, 384)]
_LARGE = [(130, 200, 300), (257, 10, 129), (3, 1025, 67), (1031, 5, 3), (65, 129, 1030)]
_LARGE += [(40, 100, 1024), (33, 67, 512), (40, 9, 1024)]
SHAPES = _TILES + _CORNERS + _DEEP + _LARGE
FEW_SHAPES = [(1, 1, 1), (7, 33, 17), (14, 48, 65), (33, 15, 130), (130, 200, 300)]
EMPTY_SHAPES = [(0, 5, 3), (5, 0, 3), (5, 3, 0), (0, 0, 3), (0, 3, 0), (5, 0, 0), (0, 0, 0)]
LEADING = [(), (1,), (3,), (1, 1), (2, 3), (4, 1, 5), (2, 0), (0, 3), (2, 1, 3, 1)]

LAYOUTS = (
    "contiguous",
    "transposed",
    "rows_apart",
    "columns_apart",
    "misaligned",
    "expanded_rows",
    "expanded_columns",
)


def shape_id(shape):
    return "M{}_N{}_K{}".format(*shape)


def shapes(values=SHAPES):
    """Parametrises a test over `shape`; write it below (nearer than) the other parametrisations."""
    return pytest.mark.parametrize("shape", values, ids=shape_id)


def dtypes(*names):
    return pytest.mark.parametrize("dtype", [DTYPES[n] for n in names], ids=names)


def activations(values=ACTIVATIONS):
    return pytest.mark.parametrize("activation", values, ids=str)


def cycled_activation(shape):
    """One activation a shape, so that a walk over the shapes meets all of them."""
    return ACTIVATIONS[1 + (SHAPES.index(shape) if shape in SHAPES else sum(shape)) % 9]


def relayout(tensor, layout):
    """The tensor in another memory layout; gaps hold NaN, so that reading them is seen.

    Equal values, but for the expanded layouts, which repeat the first row or column (stride 0).
    """
    shape = tensor.shape
    if layout == "transposed" and tensor.dim() > 1:
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "rows_apart" and tensor.dim() > 0:
        gap = tensor.new_full((*shape[:-1], shape[-1] + 5), math.nan)
        return gap[..., 2 : 2 + shape[-1]].copy_(tensor)
    if layout == "columns_apart" and tensor.dim() > 0:
        gap = tensor.new_full((*shape[:-1], 2 * shape[-1]), math.nan)
        return gap[..., ::2].copy_(tensor)
    if layout == "misaligned":
        return tensor.new_full((tensor.numel() + 1,), math.nan)[1:].view(shape).copy_(tensor)
    if layout == "expanded_rows" and tensor.dim() > 1:
        return tensor[..., :1, :].expand(shape)
    if layout in ("expanded_rows", "expanded_columns") and tensor.dim() > 0:
        return tensor[..., :1].expand(shape)
    return tensor.contiguous()


def linear_tensors(shape, dtype, *, leading=None, scale=1.0, bias=True):
    """X, W, b with pre-activations of standard deviation about `scale`."""
    m, n, k = shape
    rows = (m,) if leading is None else leading
    x = torch.randn(*rows, k, dtype=torch.float64) * (scale / math.sqrt(max(k, 1)))
    w = torch.randn(n, k, dtype=torch.float64)
    b = torch.randn(n, dtype=torch.float64) * (scale / 4) if bias else None
    return tuple(t if t is None else t.to(dtype) for t in (x, w, b))


def stack_tensors(rows, sizes, dtype, *, activation="relu", bias=True, margin=2e-5):
    """X and [W0, b0, W1, b1, ...] of a stack; `rows` an int or a leading shape.

    For an activation with a kink, draws again until no pre-activation lies within `margin` of it:
    there rounding alone decides between two derivatives, in PyTorch as here.
    """
    rows = (rows,) if isinstance(rows, int) else tuple(rows)
    for _ in range(200):
        x = torch.randn(*rows, sizes[0], dtype=torch.float64).to(dtype)
        parameters = []
        for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
            w = torch.randn(fan_out, fan_in, dtype=torch.float64) / math.sqrt(fan_in)
            parameters += [w.to(dtype), (torch.randn(fan_out) / 4).to(dtype) if bias else None]
        h, clear = x.double(), True
        for w, b in zip(parameters[::2], parameters[1::2], strict=True):
            z = reference.linear(h, w.double(), None if b is None else b.double())
            clear = clear and (activation not in KINKED or away_from_zero(z, margin))
            h = reference.activate(z, activation)
        if clear:
            return x, parameters
    raise AssertionError("no draw keeps the pre-activations away from the kink")


def away_from_zero(z, margin):
    return z.numel() == 0 or z.abs().min() > margin * z.abs().max()


def smooth_grad_output(x, w, b, activation, dtype):
    """A random dY, 0 where the pre-activation is at the kink to within rounding."""
    z = reference.linear(*(t if t is None else t.detach().double() for t in (x, w, b)))
    dy = torch.randn(z.shape, dtype=torch.float64).to(dtype)
    if activation in KINKED and z.numel():
        dy[z.abs() < 1e-3 * z.abs().max()] = 0
    return dy


def evaluate(function, tensors, grad_output=None):
    """{"output": Y, "grad0": ..., ...}: the value of function(*tensors) and all its gradients.

    Tensors keep their layout. The gradient of index i is that of tensors[i]; None and integer
    tensors have none. `grad_output` None means no backward.
    """
    leaves = [t if t is None else t.detach() for t in tensors]
    places = [i for i, t in enumerate(leaves) if t is not None and t.is_floating_point()]
    if grad_output is not None:
        for i in places:
            leaves[i].requires_grad_()
    out = function(*leaves)
    results = {"output": out.detach()}
    if grad_output is not None:
        grads = torch.autograd.grad(out, [leaves[i] for i in places], grad_output)
        results |= {f"grad{i}": g for i, g in zip(places, grads, strict=True)}
    return results


def exactly(tensors):
    """The same values in float64 (integers and None as they are)."""
    return [t if t is None or not t.is_floating_point() else t.double() for t in tensors]


def relative_error(actual, expected):
    """max |actual - expected| / max |expected| in float64; NaN and Inf must be the same ones."""
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    actual, expected = actual.detach().double(), expected.detach().double()
    finite = expected.isfinite()
    if not torch.equal(
        actual.masked_fill(finite, 0).nan_to_num(nan=7.0),
        expected.masked_fill(finite, 0).nan_to_num(nan=7.0),
    ):
        return math.inf
    if not finite.any():
        return 0.0
    difference = (actual[finite] - expected[finite]).abs().max().item()
    scale = expected[finite].abs().max().item()
    if math.isnan(difference):
        return math.inf
    return difference / scale if scale > 0 else difference


def assert_equal_to(label, actual, expected, tolerance):
    """Two results of `evaluate`: same names, dtypes and shapes, relative_error <= tolerance."""
    assert actual.keys() == expected.keys(), label
    for name in expected:
        assert actual[name].dtype == expected[name].dtype, f"{label} {name}: dtype"
        error = relative_error(actual[name], expected[name])
        assert error <= tolerance, f"{label} {name}: relative error {error:.2e} > {tolerance:.0e}"


def assert_as_accurate(label, actual, torchs, exact, floor):
    """`actual` is at most twice as far from `exact` (float64) as PyTorch's own result is.

    A PyTorch that is exact by luck is no yardstick: relative errors up to `floor` always pass.
    """
    assert actual.keys() == torchs.keys() == exact.keys(), label
    for name in exact:
        assert actual[name].dtype == torchs[name].dtype, f"{label} {name}: dtype"
        ours, theirs = (relative_error(r[name], exact[name]) for r in (actual, torchs))
        limit = max(2 * theirs, floor)
        assert ours <= limit, f"{label} {name}: error {ours:.2e}, PyTorch {theirs:.2e}"


def check(label, ours, theirs, tensors, grad_output=None, floor_eps=64):
    """Ours against the reference: float64 to 1e-12, narrower types by the yardstick above.

    The floors (8 eps in 16 bits) are loose on purpose: a result of one element may be a sum that
    cancels. This asks for correctness only; test_numerics.py measures accuracy.
    """
    actual = evaluate(ours, tensors, grad_output)
    expected = evaluate(theirs, tensors, grad_output)
    dtype = expected["output"].dtype
    if dtype == torch.float64:
        return assert_equal_to(label, actual, expected, 1e-12)
    exact_dy = None if grad_output is None else grad_output.double()
    exact = evaluate(theirs, exactly(tensors), exact_dy)
    floor = torch.finfo(dtype).eps * (floor_eps if dtype == torch.float32 else 8)
    return assert_as_accurate(label, actual, expected, exact, floor)


def outcome(function):
    """("raises", type, message) or ("returns", value)."""
    try:
        return ("returns", function())
    except Exception as error:
        return ("raises", type(error), str(error))


def assert_same_outcome(label, ours, theirs, tolerance=1e-6, message=False):
    """Both raise the same type (and message), or both return sequences of tensors that agree."""
    mine, expected = outcome(ours), outcome(theirs)
    both = f"{label}: ours {mine}\nPyTorch {expected}"
    assert mine[0] == expected[0], both
    if expected[0] == "raises":
        assert mine[1] is expected[1], both
        assert not message or mine[2] == expected[2], both
    else:
        assert_close(label, mine[1], expected[1], tolerance)
    return expected


def assert_close(label, ours, theirs, tolerance=1e-12):
    for p, q in zip(ours, theirs, strict=True):
        assert type(p) is type(q) and p.dtype == q.dtype and p.device == q.device, label
        if p.is_complex():
            p, q = torch.view_as_real(p.detach()), torch.view_as_real(q.detach())
        error = relative_error(p, q) if not p.is_meta else 0.0
        assert error <= tolerance, f"{label}: relative error {error:.2e}"


# The optimizers, with options that use all their state.
OPTIMIZERS = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    "Adam": {"lr": 0.01, "amsgrad": True},
    "AdamW": {"lr": 0.01, "weight_decay": 0.1},
    "Adagrad": {"lr": 0.05, "lr_decay": 0.01, "initial_accumulator_value": 0.1},
    "RMSprop": {"lr": 0.01, "momentum": 0.9, "centered": True},
    "NAdam": {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True},
    "RAdam": {"lr": 0.01, "betas": (0.8, 0.99)},
    "Adamax": {"lr": 0.01, "weight_decay": 0.1},
}
classes = pytest.mark.parametrize("name", OPTIMIZERS)


# The same without what a test sets itself: lr, and weight decay.
STATES = {
    "SGD": {"momentum": 0.9},
    "Adam": {"amsgrad": True},
    "AdamW": {"amsgrad": True},
    "Adagrad": {"lr_decay": 0.01},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "NAdam": {},
    "RAdam": {"betas": (0.8, 0.99)},
    "Adamax": {},
}


def loop(name):
    """What chooses torch's for-loop form of a class."""
    takes_fused = "fused" in inspect.signature(getattr(torch.optim, name)).parameters
    return {"foreach": False, **({"fused": False} if takes_fused else {})}


def optimizer_parameters(dtype=torch.float64):
    torch.manual_seed(7)
    return [torch.nn.Parameter(torch.randn(s, dtype=dtype)) for s in ((9, 17), (17,), ())]


def build(module, name, params, **options):
    return getattr(module, name)(params, **{**OPTIMIZERS[name], **options})


def set_gradients(params, step):
    torch.manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, dtype=torch.float64).to(p.dtype)


def run(optimizer, params, steps):
    for step in steps:
        set_gradients(params, step)
        optimizer.step()
