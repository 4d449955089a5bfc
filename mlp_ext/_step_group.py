"""The processes of a torch.distributed group that train one model by TrainStep.

They start from one model, and meet once in each step: on the CPU with notes of what each came for
(csrc/bindings/step_group.h); on CUDA, where to read a note would be to wait for the GPU, without.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ._chain import Chain
from ._load import _C

_ALIGNMENT = 16  # bytes: what the kernels of optimizers and clipping load at once


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
        self._layout: list[tuple] | None = None
        self._near = torch.empty(0)  # on the model's device

    def core(self, chain: Chain) -> Any:
        """The compiled half, of what the chain's parameters are when this is first called."""
        if self._core is None:
            of = [p for layer in chain.layers for p in layer.parameters()]
            sizes = [p.numel() if p.requires_grad else 0 for p in of]
            is_double = of[0].dtype == torch.float64
            self._core = _C.StepGroup(self._group, self.size, sizes, is_double)
        return self._core

    def shared_gradients(self, params: list[nn.Parameter]) -> "SharedGradients":
        """Of all parameters of a chain on CUDA. RuntimeError if they are not what they were when
        this was first called, as those of the other processes may be."""
        layout = [(p.shape, p.dtype, p.requires_grad) for p in params]
        if self._layout is None:
            self._layout = layout
        if layout != self._layout:
            raise RuntimeError(
                "TrainStep: the model's parameters, their sizes, dtype or which of them require a "
                "gradient are not as this TrainStep was made with; with a process group, make "
                "another in every process"
            )
        return SharedGradients(self._group, self.size, [p for p in params if p.requires_grad])

    def start(self, model: nn.Module, make_core: Callable[[], None]) -> None:
        """make_core() in every process, or an error in each; then the first one's model in all."""

        def made() -> list[str]:
            if isinstance(model, nn.Module):
                self._near = next(model.parameters(), self._near)
            make_core()
            return _tensors_of(model)

        of_each = self._of_each(made)
        for rank, others in enumerate(of_each):
            for here, there in zip([*of_each[0], "no more"], [*others, "no more"], strict=False):
                if here != there:
                    raise ValueError(
                        "TrainStep: the processes of the group have different models: process 0 "
                        f"has {here}, and process {rank} {there}"
                    )
        with torch.cuda.device_of(self._near):
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.detach(), group=self._group, group_src=0)

    def expect_one_length(self, loader: Iterable[Any]) -> None:
        """Before an epoch on CUDA: an error in every process if not all have as many batches, as
        far as their loaders know."""
        lengths = self._of_each(lambda: _length_of(loader))
        if None not in lengths and len(set(lengths)) > 1:
            raise RuntimeError(
                "TrainStep: the loaders of the group's processes have different numbers of "
                f"batches, {lengths}. None of them has taken a step."
            )

    def _of_each(self, call: Callable[[], Any]) -> list[Any]:
        """What call() returns in each process; an error in every one if it raises in some."""
        error: Exception | None = None
        mine: tuple[Any, str | None]
        try:
            mine = (call(), None)
        except Exception as caught:
            error, mine = caught, (None, f"{type(caught).__name__}: {caught}")
        of_each: list[Any] = [None] * self.size
        # NCCL takes the current device, which may be another process's.
        with torch.cuda.device_of(self._near):
            dist.all_gather_object(of_each, mine, group=self._group)
        if error is not None:
            raise error
        for rank, (_, failure) in enumerate(of_each):
            if failure is not None:
                raise ValueError(f"TrainStep failed in process {rank} of the group: {failure}")
        return [result for result, _ in of_each]

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


class SharedGradients:
    """One buffer for the gradients of a step on CUDA, with a view for each, which one all-reduce
    makes the averages over the processes. The recordings of all shapes of batches share it."""

    def __init__(self, group: Any, size: int, params: list[nn.Parameter]) -> None:
        self._group, self._size = group, size
        step = _ALIGNMENT // params[0].element_size()
        taken = [-(-p.numel() // step) * step for p in params]
        # What lies between the views stays 0, and so adds nothing to the norm.
        self.flat = torch.zeros(sum(taken), dtype=params[0].dtype, device=params[0].device)
        places = self.flat.split(taken)
        self.views = [v[: p.numel()].view_as(p) for v, p in zip(places, params, strict=True)]

    def put(self, grads: list[Tensor]) -> None:
        """This process's part of the averages; can be recorded in a CUDA graph."""
        torch._foreach_copy_(self.views, grads)
        self.flat.div_(self._size)  # before they are added up, as DistributedDataParallel does

    def add_up(self) -> None:
        """With NCCL the current stream waits for the other processes, and the host does not."""
        dist.all_reduce(self.flat, group=self._group)


def _length_of(loader: Iterable[Any]) -> int | None:
    """None where it is not known: of a generator, or a DataLoader of an IterableDataset."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:
        return None


def _tensors_of(model: nn.Module) -> list[str]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return [
        f"{n} {tuple(t.shape)} {t.dtype} requires_grad={t.requires_grad} on {t.device.type}"
        for n, t in named
    ]
