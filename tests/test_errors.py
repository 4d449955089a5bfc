"""Bad input raises what PyTorch raises for it, says what it got, and changes nothing.

Each case runs through plain PyTorch too: if that raises, ours must raise the same type; if that
gives a result (many odd inputs do), ours must give the same.
"""

import pytest
import torch
import torch.nn.functional as F
from cases import assert_same_outcome

from mlp_ext import functional, reference


def t(*shape, dtype=torch.float32, device="cpu"):
    return torch.randn(shape, dtype=torch.float64).to(dtype).to(device)


# name -> (input, weight, bias), and what the message of a refusal must contain.
LINEAR = {
    "k_differs": (lambda: (t(4, 5), t(3, 6), None), ("5", "6")),
    "k_differs_in_3_d": (lambda: (t(2, 4, 5), t(3, 6), t(3)), ("5", "6")),
    "k_differs_by_broadcast": (lambda: (t(4, 1), t(3, 6), t(3)), ("1", "6")),
    "weight_is_transposed": (lambda: (t(4, 5), t(5, 3), t(3)), ("5", "3")),
    "bias_is_longer": (lambda: (t(4, 5), t(3, 5), t(7)), ("7", "3")),
    "bias_is_shorter": (lambda: (t(4, 5), t(3, 5), t(2)), ("2", "3")),
    "bias_of_batch_size": (lambda: (t(4, 5), t(3, 5), t(4)), ("4", "3")),
    "bias_is_a_matrix": (lambda: (t(4, 5), t(3, 5), t(4, 3)), ()),
    "bias_is_a_wrong_matrix": (lambda: (t(4, 5), t(3, 5), t(3, 1)), ("3",)),
    "bias_of_one": (lambda: (t(4, 5), t(3, 5), t(1)), ()),
    "bias_is_empty": (lambda: (t(4, 5), t(3, 5), t(0)), ("0", "3")),
    "weight_is_3_d": (lambda: (t(4, 5), t(2, 3, 5), None), ("3D",)),
    "weight_is_1_d": (lambda: (t(4, 5), t(5), None), ()),
    "weight_is_1_d_with_bias": (lambda: (t(4, 5), t(5), t(1)), ()),
    "weight_is_a_number": (lambda: (t(4, 5), t(), None), ("0D",)),
    "input_is_a_number": (lambda: (t(), t(3, 5), t(3)), ("0D",)),
    "input_is_1_d": (lambda: (t(5), t(3, 5), t(3)), ()),
    "input_is_1_d_and_wrong": (lambda: (t(6), t(3, 5), t(3)), ("6", "5")),
    "empty_input_of_wrong_width": (lambda: (t(0, 4), t(3, 5), t(3)), ("4", "5")),
    "input_is_double": (lambda: (t(4, 5).double(), t(3, 5), t(3)), ("double", "float")),
    "weight_is_double": (lambda: (t(4, 5), t(3, 5).double(), t(3)), ("float", "double")),
    "bias_is_double": (lambda: (t(4, 5), t(3, 5), t(3).double()), ("Double", "Float")),
    "bias_is_half": (lambda: (t(4, 5), t(3, 5), t(3).half()), ("Half", "Float")),
    "weight_is_bfloat16": (lambda: (t(4, 5), t(3, 5).bfloat16(), None), ("float", "bfloat16")),
    "integers": (lambda: (t(4, 5).long(), t(3, 5).long(), t(3).long()), ()),
    "booleans": (lambda: (t(4, 5) > 0, t(3, 5) > 0, None), ("Bool",)),
    "complex": (lambda: (t(4, 5) + 0j, t(3, 5) * 1j, t(3) + 1j), ()),
    "complex_and_real": (lambda: (t(4, 5) + 0j, t(3, 5), t(3)), ()),
    "float8": (lambda: tuple(t(*s).to(torch.float8_e4m3fn) for s in ((4, 5), (3, 5), (3,))), ()),
    "all_meta": (lambda: tuple(t(*s, device="meta") for s in ((4, 5), (3, 5), (3,))), ()),
    "input_is_meta": (lambda: (t(4, 5, device="meta"), t(3, 5), t(3)), ()),
    "bias_is_meta": (lambda: (t(4, 5), t(3, 5), t(3, device="meta")), ("meta", "cpu")),
    "input_is_a_list": (lambda: ([[1.0] * 5], t(3, 5), None), ()),
    "input_is_none": (lambda: (None, t(3, 5), None), ()),
    "weight_is_a_list": (lambda: (t(4, 5), [[1.0] * 5], None), ()),
    "weight_is_an_array": (lambda: (t(4, 5), t(3, 5).numpy(), None), ()),
    "bias_is_a_number": (lambda: (t(4, 5), t(3, 5), 1.0), ()),
    "bias_is_a_list": (lambda: (t(4, 5), t(3, 5), [1.0]), ()),
    "input_is_sparse": (lambda: (t(4, 5).to_sparse(), t(3, 5), None), ()),
    "input_is_mkldnn": (lambda: (t(4, 5).to_mkldnn(), t(3, 5), t(3)), ()),
}


def dense(function):
    return lambda: [r.to_dense() if r.layout is not torch.strided else r for r in [function()]]


@pytest.mark.parametrize("activation", [None, "relu"], ids=str)
@pytest.mark.parametrize("case", LINEAR)
def test_linear(case, activation):
    make, words = LINEAR[case]
    args = make()
    before = [a.clone() if torch.is_tensor(a) else a for a in args]
    rng = torch.get_rng_state()
    functions = (
        dense(lambda m=m: m.linear(*args, activation=activation)) for m in (functional, reference)
    )
    assert_same_outcome(case, *functions)
    assert torch.equal(torch.get_rng_state(), rng)
    for a, b in zip(args, before, strict=True):
        if torch.is_tensor(a) and not a.is_meta and a.layout is torch.strided:
            assert a._version == 0 and torch.equal(
                a.float() if a.is_floating_point() else a, b.float() if b.is_floating_point() else b
            )
    try:
        functional.linear(*args, activation=activation)
    except Exception as error:
        missing = [word for word in words if word.lower() not in str(error).lower()]
        assert not missing, f"{error} does not say {missing}"
    else:
        assert not words


def test_meta_weight():
    """F.linear itself returns uninitialised memory here: a refusal or any numbers, but no crash."""
    try:
        assert functional.linear(t(4, 5), t(3, 5, device="meta"), t(3)).shape == (4, 3)
    except RuntimeError as error:
        assert "meta" in str(error)


@pytest.mark.parametrize("case", LINEAR)
def test_with_gradients(case):
    """The same where autograd takes part; a refused call leaves every grad None."""
    make, _ = LINEAR[case]
    args = [
        a.requires_grad_()
        if torch.is_tensor(a)
        and (a.is_floating_point() or a.is_complex())
        and a.layout is torch.strided
        else a
        for a in make()
    ]
    leaves = [a for a in args if torch.is_tensor(a) and a.requires_grad]

    def grads(module):
        out = module.linear(*args, activation=None)
        if not out.requires_grad or out.is_meta or out.dtype == torch.float8_e4m3fn:
            return [out.to_dense() if out.layout is not torch.strided else out]
        gradients = torch.autograd.grad(out.abs().sum(), leaves)
        return [out.detach(), *gradients]

    assert_same_outcome(case, lambda: grads(functional), lambda: grads(reference))
    assert all(leaf.grad is None for leaf in leaves)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("case", [c for c in LINEAR if not c.startswith("input")])
def test_mlp(case, layer):
    """The bad layer first, between and last; layers before it must not have changed anything."""
    x, w, b = LINEAR[case][0]()
    if torch.is_tensor(x) and x.dtype in (torch.float32, torch.float64) and x.dim() > 1:
        weights = [torch.eye(x.shape[-1], dtype=x.dtype) for _ in range(layer)] + [w]
    else:
        weights = [w]
    biases = [None] * (len(weights) - 1) + [b]
    functions = (
        lambda m=m: [m.mlp(x, weights, biases, activation="tanh")] for m in (functional, reference)
    )
    assert_same_outcome(case, *functions, tolerance=1e-5)


@pytest.mark.parametrize("name", ["foo", "", "ReLU", "none", 3, 1.5, ["relu"], torch.relu, True])
def test_unknown_activation(name):
    x, w = t(4, 5), t(3, 5)
    calls = (
        lambda: functional.linear(x, w, activation=name),
        lambda: functional.mlp(x, [w], [None], activation=name),
        lambda: functional.mlp(x, [w], [None], final_activation=name),
    )
    for call in calls:
        with pytest.raises((ValueError, TypeError)) as info:
            call()
        if isinstance(name, str):
            assert info.type is ValueError
            for known in ("None", *functional.ACTIVATIONS):
                assert known in str(info.value)
            assert repr(name) in str(info.value)


def test_mlp_lists():
    x, w, b = t(4, 5), t(3, 5), t(3)
    for weights, biases in (([w], []), ([w], [b, b]), ([], [b]), ([w, w], [b]), ([], [])):
        with pytest.raises(ValueError) as info:
            functional.mlp(x, weights, biases)
        assert type(info.value) is ValueError
    with pytest.raises(ValueError, match="2.*1"):
        functional.mlp(x, [w, w], [b])
    with pytest.raises(TypeError):
        functional.mlp(x, [w, "w"], [b, b])
    with pytest.raises(TypeError):
        functional.mlp(x, [w], ["b"])
    with pytest.raises(TypeError):
        functional.mlp(x, 3, 4)
    with pytest.raises(TypeError):
        functional.linear(x)
    with pytest.raises(TypeError):
        functional.linear(x, w, b, "relu")  # activation goes by name


def indices(*values):
    return torch.tensor(values)


# name -> (logits, target, options) and the words of a refusal; 4 rows of 5 classes.
LOSS = {
    "class_5": (lambda: (t(4, 5), indices(0, 1, 5, 2), {}), ("5",)),
    "class_minus_1": (lambda: (t(4, 5), indices(0, -1, 1, 2), {}), ("-1",)),
    "class_77_unreduced": (lambda: (t(4, 5), indices(0, 1, 2, 77), {"reduction": "none"}), ("77",)),
    "class_77_smoothed": (
        lambda: (t(4, 5), indices(77, 1, 2, 3), {"label_smoothing": 0.1}),
        ("77",),
    ),
    "class_77_weighted": (lambda: (t(4, 5), indices(77, 1, 2, 3), {"weight": t(5)}), ("77",)),
    "class_77_of_a_vector": (lambda: (t(5), torch.tensor(77), {}), ("77",)),
    "class_77_of_an_image": (lambda: (t(2, 5, 3, 3), torch.full((2, 3, 3), 77), {}), ("77",)),
    "class_minus_100_is_ignored": (lambda: (t(4, 5), indices(-100, 1, 2, 3), {}), ()),
    "ignored_index_is_another": (
        lambda: (t(4, 5), indices(-100, 1, 2, 3), {"ignore_index": 1}),
        ("-100",),
    ),
    "class_is_huge": (lambda: (t(4, 5), indices(2**40, 1, 2, 3), {}), (str(2**40),)),
    "targets_are_int32": (lambda: (t(4, 5), indices(0, 1, 2, 3).int(), {}), ("Int",)),
    "targets_are_bytes": (lambda: (t(4, 5), indices(0, 1, 2, 3).byte(), {}), ()),
    "targets_are_booleans": (lambda: (t(4, 5), indices(0, 1, 1, 0).bool(), {}), ("Bool",)),
    "fewer_targets": (lambda: (t(4, 5), indices(0, 1, 2), {}), ("4", "3")),
    "more_targets": (lambda: (t(4, 5), indices(0, 1, 2, 3, 4), {}), ("4", "5")),
    "targets_in_a_column": (lambda: (t(4, 5), indices(0, 1, 2, 3)[:, None], {}), ()),
    "scalar_target": (lambda: (t(4, 5), torch.tensor(1), {}), ()),
    "targets_for_a_vector": (lambda: (t(5), indices(1), {}), ()),
    "targets_of_other_image": (lambda: (t(2, 5, 3, 3), torch.ones(2, 3, 4).long(), {}), ("3", "4")),
    "probabilities_of_other_shape": (lambda: (t(4, 5), t(4, 6).abs(), {}), ()),
    "probabilities_in_double": (lambda: (t(4, 5), t(4, 5).abs().double(), {}), ()),
    "probabilities_and_ignored": (lambda: (t(4, 5), t(4, 5).abs(), {"ignore_index": 1}), ()),
    "weight_is_short": (lambda: (t(4, 5), indices(0, 1, 2, 3), {"weight": t(4)}), ("5", "4")),
    "weight_is_a_matrix": (lambda: (t(4, 5), indices(0, 1, 2, 3), {"weight": t(5, 1)}), ("5",)),
    "weight_is_double": (
        lambda: (t(4, 5), indices(0, 1, 2, 3), {"weight": t(5).double()}),
        ("Float", "Double"),
    ),
    "weight_is_meta": (lambda: (t(4, 5), indices(0, 1, 2, 3), {"weight": t(5, device="meta")}), ()),
    "weight_wants_gradient": (
        lambda: (t(4, 5), indices(0, 1, 2, 3), {"weight": t(5).requires_grad_()}),
        ("weight",),
    ),
    "weight_is_a_list": (
        lambda: (t(4, 5), indices(0, 1, 2, 3), {"weight": [1.0] * 5}),
        ("weight",),
    ),
    "reduction_is_unknown": (
        lambda: (t(4, 5), indices(0, 1, 2, 3), {"reduction": "max"}),
        ("max",),
    ),
    "reduction_is_none": (lambda: (t(4, 5), indices(0, 1, 2, 3), {"reduction": None}), ("None",)),
    "smoothing_above_1": (
        lambda: (t(4, 5), indices(0, 1, 2, 3), {"label_smoothing": 1.5}),
        ("1.5",),
    ),
    "smoothing_below_0": (lambda: (t(4, 5), indices(0, 1, 2, 3), {"label_smoothing": -0.5}), ()),
    "smoothing_is_text": (
        lambda: (t(4, 5), indices(0, 1, 2, 3), {"label_smoothing": "a"}),
        ("'a'",),
    ),
    "ignore_index_is_text": (
        lambda: (t(4, 5), indices(0, 1, 2, 3), {"ignore_index": "a"}),
        ("'a'",),
    ),
    "ignore_index_is_a_float": (
        lambda: (t(4, 5), indices(0, 1, 2, 3), {"ignore_index": 1.0}),
        ("1.0",),
    ),
    "no_classes": (lambda: (t(4, 0), indices(0, 0, 0, 0), {}), ("0",)),
    "no_rows_no_classes": (lambda: (t(0, 0), torch.ones(0).long(), {}), ()),
    "logits_are_a_number": (lambda: (t(), torch.tensor(0), {}), ()),
    "logits_are_integers": (lambda: (t(4, 5).long(), indices(0, 1, 2, 3), {}), ("Long",)),
    "logits_are_complex": (lambda: (t(4, 5) + 0j, indices(0, 1, 2, 3), {}), ()),
    "logits_are_meta": (lambda: (t(4, 5, device="meta"), indices(0, 1, 2, 3), {}), ()),
    "logits_are_a_list": (lambda: ([[1.0] * 5], indices(0), {}), ()),
    "targets_are_a_list": (lambda: (t(4, 5), [0, 1, 2, 3], {}), ()),
    "targets_are_meta": (lambda: (t(4, 5), indices(0, 1, 2, 3).to("meta"), {}), ()),
}


@pytest.mark.parametrize("gradient", [False, True], ids=["plain", "gradient"])
@pytest.mark.parametrize("case", LOSS)
def test_cross_entropy(isa, case, gradient):
    make, words = LOSS[case]
    logits, target, options = make()
    if gradient and torch.is_tensor(logits) and logits.is_floating_point():
        logits.requires_grad_()

    def loss(module):
        value = module.cross_entropy(logits, target, **options)
        if not value.requires_grad or value.is_meta:
            return [value]
        return [value.detach(), *torch.autograd.grad(value.sum(), [logits])]

    expected = assert_same_outcome(case, lambda: loss(functional), lambda: loss(F))
    if words:
        assert expected[0] == "raises"
        with pytest.raises(expected[1]) as info:
            loss(functional)
        missing = [word for word in words if word not in str(info.value)]
        assert not missing, f"{info.value} does not say {missing}"
    if torch.is_tensor(logits) and logits.requires_grad:
        assert logits.grad is None and logits._version == 0
