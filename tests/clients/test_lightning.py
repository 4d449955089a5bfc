"""Lightning: a LightningModule of ours under the Trainer, beside the same module of PyTorch's.

fit with its hooks and options, checkpoints resumed in either form, and Fabric's own loop.
"""

import lightning
import pytest
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging
from torch import nn
from torch.utils.data import TensorDataset

import mlp_ext

# Lightning's own: what it thinks of workers, of logging intervals, and of its dependencies.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

GENERATOR = torch.Generator().manual_seed(3)
LABELS = torch.arange(48) % 3
POINTS = torch.randn(3, 6, generator=GENERATOR)[LABELS] + torch.randn(48, 6, generator=GENERATOR)


class Classifier(lightning.LightningModule):
    def __init__(self, ours: bool, optimizer: str = "Adam", manual: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = not manual
        self.loss = mlp_ext.nn.CrossEntropyLoss() if ours else nn.CrossEntropyLoss()
        self.net = nn.Sequential(
            nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 8), nn.SiLU(),
            nn.BatchNorm1d(8), nn.Linear(8, 3),
        )  # fmt: skip
        if ours:
            mlp_ext.fuse(self.net)

    def training_step(self, batch, index):
        loss = self.loss(self.net(batch[0]), batch[1])
        self.log("loss", loss, on_step=False, on_epoch=True)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, 0.5)
            optimizer.step()
        return loss

    def validation_step(self, batch, index):
        self.log("validation", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        optim = mlp_ext.optim if self.hparams.ours else torch.optim
        optimizer = getattr(optim, self.hparams.optimizer)(self.parameters(), lr=0.02)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.8)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def loader(ours: bool, shuffle: bool = True):
    kind = mlp_ext.data.DataLoader if ours else torch.utils.data.DataLoader
    return kind(TensorDataset(POINTS, LABELS), batch_size=16, shuffle=shuffle)


def fit(ours: bool, folder, *, epochs: int = 3, resume=None, module=None, **options):
    """A module trained for `epochs`; its Trainer is at `.trainer`."""
    torch.manual_seed(8)
    module_options = {key: options.pop(key) for key in ("optimizer", "manual") if key in options}
    module = module or Classifier(ours, **module_options)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, default_root_dir=folder, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        **options,
    )  # fmt: skip
    trainer.fit(module, loader(ours), loader(ours, shuffle=False), ckpt_path=resume)
    return module


def assert_same(ours: Classifier, plain: Classifier, **tolerance):
    tolerance = tolerance or {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), **tolerance)
    metrics = plain.trainer.callback_metrics
    assert metrics.keys() == {"loss", "validation"}
    torch.testing.assert_close(ours.trainer.callback_metrics, metrics, **tolerance)


OPTIONS = {
    "nothing": lambda: {},
    "SGD": lambda: {"optimizer": "SGD"},
    "clip by norm": lambda: {"gradient_clip_val": 0.3},
    "clip by value": lambda: {
        "gradient_clip_val": 0.05,
        "gradient_clip_algorithm": "value",
        "optimizer": "SGD",
    },
    "accumulate": lambda: {"accumulate_grad_batches": 2},
    "manual": lambda: {"manual": True},
    "float64": lambda: {"precision": "64-true"},
    "early stopping": lambda: {"callbacks": [EarlyStopping("validation", 10.0)], "epochs": 9},
    "averaged weights": lambda: {"callbacks": [StochasticWeightAveraging(0.01, 1)], "epochs": 4},
    "inference_mode=False": lambda: {"inference_mode": False},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_fit(options, tmp_path):
    ours, plain = (fit(kind, tmp_path, **options()) for kind in (True, False))
    assert_same(ours, plain)
    assert any(report.fused for report in mlp_ext.explain(ours))
    wrapped = ours.optimizers()
    assert isinstance(wrapped, type(ours.trainer.optimizers[0]))
    assert type(ours.trainer.optimizers[0]) is getattr(mlp_ext.optim, ours.hparams.optimizer)


def test_mixed_precision(tmp_path):
    ours, plain = (fit(kind, tmp_path, precision="bf16-mixed") for kind in (True, False))
    assert_same(ours, plain, rtol=0.05, atol=0.05)


def resumed(saved_by: bool, loaded_by: bool, folder) -> Classifier:
    first = fit(saved_by, folder, epochs=2)
    first.trainer.save_checkpoint(folder / "half.ckpt")
    return fit(loaded_by, folder, epochs=4, resume=folder / "half.ckpt")


@pytest.mark.parametrize("saved_by, loaded_by", [(True, True), (True, False), (False, True)])
def test_a_checkpoint_is_resumed(saved_by, loaded_by, tmp_path):
    """Parameters, buffers, optimizer state and schedule travel between the two forms."""
    ours, plain = (resumed(*way, tmp_path) for way in ((saved_by, loaded_by), (False, False)))
    assert ours.trainer.global_step == plain.trainer.global_step == 12
    assert_same(ours, plain)
    mine, theirs = (module.trainer.optimizers[0].state_dict() for module in (ours, plain))
    torch.testing.assert_close(mine["state"], theirs["state"], rtol=1e-3, atol=1e-5)
    assert mine["state"][0]["step"] == 12
    assert mine["param_groups"][0]["lr"] == theirs["param_groups"][0]["lr"]


def test_a_module_is_loaded_from_a_checkpoint(tmp_path):
    first = fit(True, tmp_path)
    first.trainer.save_checkpoint(tmp_path / "whole.ckpt")
    loaded = Classifier.load_from_checkpoint(tmp_path / "whole.ckpt", weights_only=True)
    assert type(loaded.net) is mlp_ext.nn.Sequential
    torch.testing.assert_close(loaded.state_dict(), first.state_dict(), rtol=0, atol=0)


def test_fabric():
    """The loop of one's own, with module and optimizer wrapped."""
    results = []
    for ours in (True, False):
        torch.manual_seed(8)
        fabric = Fabric(accelerator="cpu", devices=1)
        module = Classifier(ours).net
        optimizer = (mlp_ext if ours else torch).optim.AdamW(module.parameters(), lr=0.02)
        net, wrapped = fabric.setup(module, optimizer)
        for points, labels in fabric.setup_dataloaders(loader(ours)):
            wrapped.zero_grad()
            fabric.backward(F.cross_entropy(net(points), labels))
            fabric.clip_gradients(net, wrapped, max_norm=0.5)
            wrapped.step()
        results.append((module.state_dict(), optimizer.state_dict()["state"]))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
