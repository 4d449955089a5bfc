"""TrainStep's way on CUDA, taken on the CPU: instead of a graph the work itself runs again."""

import torch

from mlp_ext import train_step
from mlp_ext._graphed_step import GraphedCore


def record_by_running_again(work):
    with torch.enable_grad():
        work()  # as for a graph
        loss, grads = work()

    def replay():
        with torch.enable_grad():
            again, of_each = work()
        with torch.no_grad():
            loss.copy_(again)
            for grad, value in zip(grads, of_each, strict=True):
                grad.copy_(value)

    return (loss, grads), replay


def take_that_way(monkeypatch):
    """Every TrainStep until the monkeypatch is undone."""
    make_core = train_step.TrainStep._make_core

    def make_graphed_core(self):
        make_core(self)
        self._step = GraphedCore(
            self.model,
            train_step.chain_of(self.model, self.compute_dtype is torch.bfloat16),
            train_step.loss_call(self.loss_fn),
            self.optimizer,
            self.clip_grad_norm,
            self.compute_dtype,
            train_step.hook_dicts(self.model, self.optimizer, self.loss_fn),
            [*train_step.structure_of(self.model), *train_step.loss_options(self.loss_fn)],
            record_by_running_again,
        )

    def stepped_epoch(self, loader):
        return self._stepped_epoch(self._on_device(loader))

    monkeypatch.setattr(train_step.TrainStep, "_make_core", make_graphed_core)
    monkeypatch.setattr(train_step.TrainStep, "_gathered_epoch", stepped_epoch)
