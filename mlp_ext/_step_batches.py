"""The batches of TrainStep.epoch."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def pair_of(batch: Any) -> tuple[Tensor, Tensor]:
    """The features and targets of a loader's batch; ValueError or TypeError for another thing."""
    if isinstance(batch, Tensor | Mapping | str):
        got = "one tensor" if isinstance(batch, Tensor) else f"a {type(batch).__name__}"
        raise TypeError(f"TrainStep.epoch takes batches (features, targets), got {got}")
    parts = tuple(batch)
    if len(parts) != 2:
        raise ValueError(
            f"TrainStep.epoch takes batches (features, targets), got {len(parts)} parts"
        )
    return parts


def on_device(loader: Iterable[Any], device: torch.device) -> Iterator[list[Tensor]]:
    for batch in loader:
        yield [t.to(device, non_blocking=True) for t in pair_of(batch)]


class Run:
    """A run of batches of one size: a call goes on where the last one came to."""

    def __init__(self, step: Any, *arguments: Any) -> None:
        """step: a TrainStep, whose core may become another one in the middle."""
        self._step, self._arguments, self._done = step, arguments, 0

    def __call__(self) -> int:
        outcome, self._done = self._step._core.compiled.epoch(*self._arguments, self._done)
        return outcome
