"""The processes of a torch.distributed group that train one model by TrainStep.

They start from one model, and meet once in each step (csrc/bindings/step_group.h).
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ._chain import Chain
from ._load import _C


class Processes:
    """The group of a TrainStep, as one of its processes sees it."""

    def __init__(self, group: Any) -> None:
        if not dist.is_available() or not dist.is_initialized():
            what = "is not initialized" if dist.is_available() else "is not in this build of torch"
            raise RuntimeError(f"TrainStep got a process_group, but torch.distributed {what}")
        if group == dist.GroupMember.NON_GROUP_MEMBER:
            raise ValueError("TrainStep got a process_group that this process is not part of")
        if not isinstance(group, dist.ProcessGroup):
            raise TypeError(
                "process_group is a torch.distributed.ProcessGroup or None, got "
                f"{type(group).__name__}"
            )
        self._group, self.size = group, dist.get_world_size(group)
        self._core: Any = None

    def core(self, chain: Chain) -> Any:
        """The compiled half, of what the chain's parameters are when this is first called."""
        if self._core is None:
            of = [p for layer in chain.layers for p in layer.parameters()]
            sizes = [p.numel() if p.requires_grad else 0 for p in of]
            is_double = of[0].dtype == torch.float64
            self._core = _C.StepGroup(self._group, self.size, sizes, is_double)
        return self._core

    def start(self, model: nn.Module, make_core: Callable[[], None]) -> None:
        """make_core() in every process, or an error in each; then the first one's model in all."""
        error: Exception | None = None
        mine: str | list[str]
        try:
            make_core()
            mine = _tensors_of(model)
        except Exception as caught:
            error, mine = caught, f"{type(caught).__name__}: {caught}"
        of_each: list[Any] = [None] * self.size
        dist.all_gather_object(of_each, mine, group=self._group)
        if error is not None:
            raise error
        for rank, others in enumerate(of_each):
            if isinstance(others, str):
                raise ValueError(f"TrainStep failed in process {rank} of the group: {others}")
        for rank, others in enumerate(of_each):
            for here, there in zip([*of_each[0], "no more"], [*others, "no more"], strict=False):
                if here != there:
                    raise ValueError(
                        "TrainStep: the processes of the group have different models: process 0 "
                        f"has {here}, and process {rank} {there}"
                    )
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), group=self._group, group_src=0)

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around a step: one that fails before the others were met says so to them."""
        before = self._core.meetings
        try:
            yield
        except BaseException:
            if self._core.meetings == before:
                self._leave()
            raise

    @contextlib.contextmanager
    def epoch(self) -> Iterator[None]:
        """Around steps that all processes come to the end of together."""
        before = self._core.meetings
        try:
            yield
            self._core.end()
        except BaseException:
            if self._core.meetings == before or not self._core.is_apart:
                self._leave()
            raise

    def _leave(self) -> None:
        with contextlib.suppress(Exception):  # out of reach; what made this one leave is to be seen
            self._core.leave()


def _tensors_of(model: nn.Module) -> list[str]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return [f"{n} {tuple(t.shape)} {t.dtype} requires_grad={t.requires_grad}" for n, t in named]
