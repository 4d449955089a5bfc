"""The losses of mlp_ext.nn against torch.nn's: arguments, state, copies, results."""

import copy
import pickle

import pytest
import torch
from torch import nn
from twins import same_state

import mlp_ext.nn

FOUR = torch.tensor([0.5, 1.0, 2.0, 0.0])
CASES = [
    *(("MSELoss", o) for o in ({}, {"reduction": "sum"}, {"reduction": "none"})),
    *(("L1Loss", o) for o in ({}, {"reduction": "none"})),
    *(("HuberLoss", o) for o in ({}, {"delta": 0.5}, {"reduction": "sum", "delta": 2.0})),
    *(("SmoothL1Loss", o) for o in ({}, {"beta": 0.5}, {"beta": 0.0, "reduction": "none"})),
    *(("BCEWithLogitsLoss", o) for o in ({}, {"reduction": "none"}, {"weight": FOUR})),
    ("BCEWithLogitsLoss", {"pos_weight": FOUR, "reduction": "sum"}),
    ("BCEWithLogitsLoss", {"pos_weight": FOUR, "weight": FOUR.flip(0)}),
    *(("CrossEntropyLoss", o) for o in ({}, {"weight": FOUR}, {"label_smoothing": 0.1})),
]
cases = pytest.mark.parametrize("name, options", CASES, ids=str)
COPIES = {
    "itself": lambda module: module,
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
}


@pytest.mark.parametrize("how", COPIES)
@cases
def test_results(name, options, how):
    torchs = getattr(nn, name)(**options)
    ours = COPIES[how](getattr(mlp_ext.nn, name)(**options))
    assert isinstance(ours, getattr(nn, name)) and repr(ours) == repr(torchs)
    assert type(ours) is getattr(mlp_ext.nn, name) and type(ours).__module__ == "mlp_ext.nn"
    assert same_state(ours, torchs)
    x, y = torch.randn(5, 4), torch.rand(5, 4)
    left, right = x.clone().requires_grad_(), x.clone().requires_grad_()
    a, b = ours(left, y), torchs(right, y)
    assert a.grad_fn.name() in ("ElementwiseLossBackward", "CrossEntropyBackward")
    torch.testing.assert_close(a, b)
    a.sum().backward()
    b.sum().backward()
    torch.testing.assert_close(left.grad, right.grad)


@cases
def test_state_goes_both_ways(name, options):
    torchs, ours = getattr(nn, name)(**options), getattr(mlp_ext.nn, name)(**options)
    buffers = {key: torch.rand(4) for key in torchs.state_dict()}
    for module in (torchs, ours):
        module.load_state_dict(buffers)
    ours.load_state_dict(torchs.state_dict())
    torchs.load_state_dict(ours.state_dict())
    assert ours.double().state_dict().keys() == buffers.keys()
    for value in ours.state_dict().values():
        assert value.dtype == torch.float64
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(ours(x, x.sigmoid()), torchs.double()(x, x.sigmoid()))


def test_legacy_arguments():
    for size_average, reduce in ((False, None), (None, False), (True, True)):
        for name in ("MSELoss", "L1Loss", "SmoothL1Loss", "BCEWithLogitsLoss"):
            given = {"size_average": size_average, "reduce": reduce}
            with pytest.warns(UserWarning):
                ours, torchs = getattr(mlp_ext.nn, name)(**given), getattr(nn, name)(**given)
            assert ours.reduction == torchs.reduction


def test_errors_and_warnings_are_pytorchs():
    x = torch.randn(5, 4)
    with pytest.raises(ValueError, match="same as input size"):
        mlp_ext.nn.BCEWithLogitsLoss()(x, x[:, :3])
    for name in ("MSELoss", "L1Loss", "HuberLoss", "SmoothL1Loss"):
        with pytest.warns(UserWarning, match="target size"):
            ours = getattr(mlp_ext.nn, name)()(x, x[:1])
        with pytest.warns(UserWarning, match="target size"):
            torch.testing.assert_close(ours, getattr(nn, name)()(x, x[:1]))
        with pytest.raises(RuntimeError), pytest.warns(UserWarning):
            getattr(mlp_ext.nn, name)()(x, x[:, :3])


@pytest.mark.parametrize("name", sorted({name for name, _ in CASES}))
def test_training_with_it(name):
    """A few steps of a model, by each loss and by torch's: the same parameters."""
    results = []
    for module in (mlp_ext.nn, nn):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
        loss_fn, optimizer = getattr(module, name)(), torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(20):
            x = torch.randn(7, 6, dtype=torch.float64)
            optimizer.zero_grad()
            loss_fn(model(x), x[:, :4].softmax(1)).backward()
            optimizer.step()
        results.append(list(model.parameters()))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-11)
