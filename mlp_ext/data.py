"""DataLoader: torch's, and a TensorDataset's batches are gathered whole. in_memory: makes one."""

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch.utils.data
from torch import Tensor
from torch.utils.data import IterableDataset, TensorDataset, default_collate
from torch.utils.data.dataloader import _SingleProcessDataLoaderIter

from . import _gathering

__all__ = ["DataLoader", "in_memory"]

_T_co = TypeVar("_T_co", covariant=True)
_Shapes = list[tuple[int, ...]]

# Samples that in_memory reads before it collates them.
_CHUNK = 256

_SAMPLES = "in_memory takes samples that are tuples or lists of tensors, numpy arrays and numbers"


class DataLoader(torch.utils.data.DataLoader[_T_co]):
    """torch.utils.data.DataLoader; a batch of a TensorDataset is one index_select a tensor.

    Constructor, attributes, errors, batches, their order, and what is drawn from the generators and
    when are PyTorch's: for the same seeds this loader and torch's are interchangeable. Batches are
    gathered where

    - the dataset is a TensorDataset (no subclass) of dense CPU tensors, of any strides;
    - the batch sampler is a BatchSampler over a SequentialSampler or a RandomSampler without
      replacement and num_samples, which is what batch_size, shuffle and drop_last make;
    - num_workers is 0, collate_fn default_collate, pin_memory off;
    - what they run of PyTorch's code is PyTorch's (no patch of `TensorDataset.__getitem__`, say),
      and no TorchFunctionMode or TorchDispatchMode is active.

    Everything else runs PyTorch's own iterator; `gathers` tells, `why_not()` says why.

    A gathered batch is a list of new tensors, (batch, ...) in the dataset's dtypes, contiguous: a
    change in place does not reach the dataset. What changes in the dataset, or in the sampler's
    batch size, is in the next batch, which is PyTorch's where it can no longer be gathered.
    """

    @property
    def gathers(self) -> bool:
        """Whether a pass begun now gathers its batches; False where PyTorch's iterator runs."""
        return not self.why_not()

    def why_not(self) -> str:
        """Why batches are not gathered, "" where they are."""
        return _gathering.why_not(self)

    def __iter__(self) -> Iterator[Any]:
        # PyTorch's iterator draws from the generators when it is made, ours included. A subclass
        # may have made another.
        iterator = super().__iter__()
        if type(iterator) is not _SingleProcessDataLoaderIter or self.why_not():
            return iterator
        return _gathering.Batches(self, iterator)

    def index_runs(self) -> Iterator[tuple[Tensor, int]]:
        """One pass as runs of batches of one size.

        A run of whole batches, and one of the last batch if that is smaller.

        Draws from the generators what `iter(loader)` draws, at the same times.

        Returns:
            An iterator of (indices of a run's samples, int64 (samples,), and the batch size).

        Raises:
            ValueError: where the loader does not gather, before anything is drawn.
        """
        if reason := self.why_not():
            raise ValueError(f"index_runs() needs a loader that gathers: {reason}")
        super().__iter__()
        return _gathering.index_runs(self.batch_sampler)


def in_memory(
    dataset: Any, *, progress: Callable[[int, int], object] | None = None
) -> TensorDataset:
    """Read a map-style dataset once, samples 0 to len(dataset) - 1, into a TensorDataset.

    Where samples differ in dtype, the tensor has one that holds all of them. A random transform is
    drawn once for all epochs. At its end the largest tensor is in memory twice.

    Args:
        dataset: its samples are tuples or lists, such as (features, label), of tensors, numpy
            arrays and numbers, of one shape in all samples; read with __getitems__ where it has
            that. A TensorDataset is returned as it is.
        progress: called as progress(samples read, samples in all), ten times a second and at the
            end. None: a line on stderr, if that is a terminal and it takes more than 2 seconds.

    Returns:
        Field i of the samples as tensor i, (len(dataset), ...), in default_collate's dtypes
        (tensors and arrays keep theirs, int becomes int64, bool bool, and float float64).

    Raises:
        ValueError: for a field whose shape, or a sample whose number of fields, is not that of
            sample 0 (the message has the index and both), for an empty dataset, and for samples
            that require a gradient.
        TypeError: for other types of samples, fields or datasets, and one without __len__.
    """
    if type(dataset) is TensorDataset:
        return dataset
    if progress is not None and not callable(progress):
        raise TypeError(f"progress is a function (done, total) or None, got {progress!r}")
    if isinstance(dataset, IterableDataset):
        raise TypeError("in_memory takes a map-style dataset, got an IterableDataset")
    try:
        total = len(dataset)
    except (TypeError, NotImplementedError) as error:
        raise TypeError(f"in_memory: {type(dataset).__name__} has no __len__") from error
    if total == 0:
        raise ValueError("in_memory: the dataset is empty, its samples' shapes are unknown")

    report = _reporter(progress, total)
    chunks: list[list[Tensor]] = []
    shapes: _Shapes | None = None
    fetch = getattr(dataset, "__getitems__", None)
    for start in range(0, total, _CHUNK):
        indices = range(start, min(start + _CHUNK, total))
        read = fetch(list(indices)) if fetch else (dataset[index] for index in indices)
        samples = []
        for index, sample in zip(indices, read, strict=True):
            shapes = _check(index, sample, shapes)
            samples.append(sample)
            report(index + 1)
        chunks.append([default_collate(column) for column in zip(*samples, strict=True)])
        if any(tensor.requires_grad for tensor in chunks[-1]):
            raise ValueError(
                f"samples {start} to {indices[-1]} require a gradient, which all epochs but the "
                "first would lack: detach them, or call in_memory under torch.no_grad()"
            )
    columns = [list(column) for column in zip(*chunks, strict=True)]
    chunks.clear()
    return TensorDataset(*(torch.cat(columns.pop(0)) for _ in range(len(columns))))


def _check(index: int, sample: Any, expected: _Shapes | None) -> _Shapes:
    """The shapes of the sample's fields, which are those of sample 0 (None for that one itself)."""
    if not isinstance(sample, (tuple, list)) or not sample:
        got = ("an empty " if isinstance(sample, (tuple, list)) else "a ") + type(sample).__name__
        raise TypeError(f"{_SAMPLES}, such as (features, label); sample {index} is {got}")
    shapes = [tuple(getattr(field, "shape", ())) for field in sample]
    if expected is None:
        for position, field in enumerate(sample):
            try:
                takes = isinstance(default_collate([field]), Tensor)
            except TypeError:
                takes = False
            if not takes:
                raise TypeError(f"{_SAMPLES}; field {position} is a {type(field).__name__}")
    elif len(shapes) != len(expected):
        raise ValueError(f"sample {index} has {len(shapes)} fields, sample 0 has {len(expected)}")
    elif shapes != expected:
        position = next(i for i, shape in enumerate(shapes) if shape != expected[i])
        raise ValueError(
            f"field {position} of sample {index} has the shape {shapes[position]}, in sample 0 it "
            f"has {expected[position]}: a TensorDataset needs one shape"
        )
    return shapes


def _reporter(progress: Callable[[int, int], object] | None, total: int) -> Callable[[int], None]:
    """A function of the samples read so far, which reports where it is due."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    start = last = time.monotonic()

    def report(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and now - last < 0.1:
            return
        last = now
        if progress is not None:
            progress(done, total)
        elif terminal and now - start > 2:
            line, end = f"\rin_memory: {done} of {total} samples", "\n" if done == total else ""
            print(line, end=end, file=sys.stderr, flush=True)

    return report
