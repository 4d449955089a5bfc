"""skorch: nets of ours as scikit-learn estimators, beside the same nets of PyTorch's."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier, NeuralNetRegressor
from skorch.callbacks import Checkpoint, GradientNormClipping, LRScheduler
from torch import nn

import mlp_ext

CENTRES = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
LABELS = np.arange(60) % 3
POINTS = (CENTRES[LABELS] + np.random.default_rng(1).normal(size=(60, 5))).astype(np.float32)
VALUES = (POINTS @ CENTRES[0])[:, None]


class PlainNet(nn.Sequential):
    def __init__(self, width: int = 8, outputs: int = 3) -> None:
        super().__init__(
            nn.Linear(5, width), nn.ReLU(),
            nn.Linear(width, width), nn.Tanh(), nn.Dropout(0.2),
            nn.Linear(width, outputs),
        )  # fmt: skip


class OurNet(mlp_ext.nn.Sequential):
    def __init__(self, width: int = 8, outputs: int = 3) -> None:
        super().__init__(*PlainNet(width, outputs))


FORMS = {
    False: (PlainNet, nn.CrossEntropyLoss, torch.optim),
    True: (OurNet, mlp_ext.nn.CrossEntropyLoss, mlp_ext.optim),
}


def classifier(ours: bool, optimizer: str = "Adam", **options) -> NeuralNetClassifier:
    module, criterion, optim = FORMS[ours]
    module = options.pop("module", module)
    options = {"max_epochs": 4, "lr": 0.05, "batch_size": 16, "verbose": 0, **options}
    return NeuralNetClassifier(
        module, criterion=criterion, optimizer=getattr(optim, optimizer), **options
    )


def regressor(ours: bool) -> NeuralNetRegressor:
    module, _, optim = FORMS[ours]
    return NeuralNetRegressor(
        module,
        module__outputs=1,
        optimizer=optim.SGD,
        optimizer__momentum=0.9,
        lr=0.02,
        max_epochs=4,
        verbose=0,
    )


def seeded(net, x, y):
    torch.manual_seed(9)
    return net.fit(x, y)


def assert_same(ours, plain):
    torch.testing.assert_close(
        ours.module_.state_dict(), plain.module_.state_dict(), rtol=1e-4, atol=1e-5
    )
    for column in ("train_loss", "valid_loss"):
        np.testing.assert_allclose(ours.history[:, column], plain.history[:, column], rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
def test_classifier(optimizer):
    ours, plain = (seeded(classifier(kind, optimizer), POINTS, LABELS) for kind in (True, False))
    assert all(report.fused for report in mlp_ext.explain(ours.module_))
    assert_same(ours, plain)
    assert plain.history[-1, "train_loss"] < plain.history[0, "train_loss"]
    # skorch knows from the criterion's class that these are logits.
    np.testing.assert_allclose(ours.predict_proba(POINTS).sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(ours.predict_proba(POINTS), plain.predict_proba(POINTS), rtol=1e-3)
    assert ours.score(POINTS, LABELS) == plain.score(POINTS, LABELS)


def test_regressor():
    ours, plain = (seeded(regressor(kind), POINTS, VALUES) for kind in (True, False))
    assert_same(ours, plain)
    np.testing.assert_allclose(ours.predict(POINTS), plain.predict(POINTS), rtol=1e-3, atol=1e-4)


def test_an_instance_that_was_fused():
    """A module that is already built is copied by clone, and stays fused."""
    nets = []
    for ours in (True, False):
        torch.manual_seed(2)
        sequential = nn.Sequential(*PlainNet())
        if ours:
            mlp_ext.fuse(sequential)
        net = clone(classifier(ours, module=sequential))
        assert net.module is not sequential
        nets.append(seeded(net, POINTS, LABELS))
    assert type(nets[0].module_) is mlp_ext.nn.Sequential
    assert_same(*nets)


def test_grid_search():
    grid = {"net__module__width": [4, 9], "net__lr": [0.01, 0.05]}
    found = []
    for ours in (True, False):
        pipeline = make_pipeline(StandardScaler(), classifier(ours, train_split=None))
        pipeline.steps[1] = ("net", pipeline.steps[1][1])
        torch.manual_seed(4)
        search = GridSearchCV(pipeline, grid, cv=2, scoring="neg_log_loss")
        found.append(seeded(search, POINTS, LABELS))
    np.testing.assert_allclose(
        *(search.cv_results_["mean_test_score"] for search in found), rtol=1e-3
    )
    assert found[0].best_params_ == found[1].best_params_


def test_cross_validation():
    scores = []
    for ours in (True, False):
        torch.manual_seed(4)
        scores.append(cross_val_score(regressor(ours), POINTS, VALUES, cv=3))
    np.testing.assert_allclose(*scores, rtol=1e-3)


@pytest.mark.parametrize("saved_by, loaded_by", [(True, True), (True, False), (False, True)])
def test_saved_parameters_and_optimizer_go_on(saved_by, loaded_by, tmp_path):
    files = {f"f_{name}": tmp_path / name for name in ("params", "optimizer", "history")}
    whole, first = seeded(classifier(saved_by), POINTS, LABELS), classifier(saved_by)
    seeded(first, POINTS, LABELS)
    first.save_params(**files)
    second = classifier(loaded_by).initialize()
    second.load_params(**files)
    for net in (whole, second):
        torch.manual_seed(6)
        net.partial_fit(POINTS, LABELS)
    assert_same(second, whole)


def test_pickle_and_warm_start():
    ours, plain = (seeded(classifier(kind), POINTS, LABELS) for kind in (True, False))
    ours = pickle.loads(pickle.dumps(ours))
    assert type(ours.optimizer_) is mlp_ext.optim.Adam
    for net in (ours, plain):
        torch.manual_seed(3)
        net.partial_fit(POINTS, LABELS)
    assert_same(ours, plain)


def test_callbacks(tmp_path):
    """A schedule of learning rates, clipped gradients, checkpoints and groups of parameters."""
    nets = []
    for ours in (True, False):
        callbacks = [
            LRScheduler(torch.optim.lr_scheduler.ExponentialLR, gamma=0.7),
            GradientNormClipping(0.5),
            Checkpoint(dirname=tmp_path / str(ours), monitor="train_loss_best"),
        ]
        net = classifier(ours, callbacks=callbacks, optimizer__param_groups=[("0.*", {"lr": 0.1})])
        nets.append(seeded(net, POINTS, LABELS))
    assert_same(*nets)
    for net in nets:
        assert [group["lr"] for group in net.optimizer_.param_groups] == pytest.approx(
            [lr * 0.7**4 for lr in (0.1, 0.05)]
        )
    assert (tmp_path / "True" / "params.pt").exists()
