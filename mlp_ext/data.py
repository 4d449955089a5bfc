"""DataLoader: torch's, and a TensorDataset's batches are gathered whole. in_memory: makes one."""

import functools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.utils.data
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
    get_worker_info,
)
from torch.utils.data._utils import collate as _collate

__all__ = ["DataLoader", "in_memory"]

_T_co = TypeVar("_T_co", covariant=True)
_Shapes = list[tuple[int, ...]]

# Batches whose indices are cut from the permutation at a time: a view costs 0.5 us and 0.5 KB.
_CUT = 1024
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
    - num_workers is 0, collate_fn default_collate, pin_memory off.

    Everything else runs PyTorch's own iterator; `gathers` tells, `why_not()` says why.

    A gathered batch is a list of new tensors, (batch, ...) in the dataset's dtypes, contiguous: a
    change in place does not reach the dataset. What changes in the dataset is in the next batch;
    the batch size of the sampler is read when a pass begins.
    """

    @property
    def gathers(self) -> bool:
        """Whether a pass begun now gathers its batches; False where PyTorch's iterator runs."""
        return not self.why_not()

    def why_not(self) -> str:
        """Why batches are not gathered, "" where they are."""
        dataset, batch_sampler = self.dataset, self.batch_sampler
        if type(dataset) is not TensorDataset:
            return f"the dataset is a {type(dataset).__name__}, no TensorDataset (see in_memory)"
        if self.num_workers:
            return f"num_workers is {self.num_workers}, not 0"
        if self.pin_memory:
            return "pin_memory is set"
        if batch_sampler is None:
            return "batch_size is None"
        if self.collate_fn is not default_collate or not _collates_as_known():
            return "collate_fn is not PyTorch's default_collate"
        if get_worker_info() is not None:
            return "in a worker process PyTorch collates into shared memory"
        if type(batch_sampler) is not BatchSampler:
            return f"the batch sampler is a {type(batch_sampler).__name__}, no BatchSampler"
        sampler = batch_sampler.sampler
        if type(sampler) is RandomSampler:
            if sampler.replacement or not 0 < len(sampler.data_source) == sampler.num_samples:
                return "the RandomSampler has replacement or num_samples, or nothing to sample"
            if not _draws_as_known():
                return f"the RandomSampler of torch {torch.__version__} draws in another way"
        elif type(sampler) is not SequentialSampler:
            return f"the sampler is a {type(sampler).__name__}"
        if not dataset.tensors:
            return "the dataset has no tensors"
        for position, tensor in enumerate(dataset.tensors):
            if reason := _why_not(tensor):
                return f"tensor {position} {reason}"
        return ""

    def __iter__(self) -> Iterator[Any]:
        # PyTorch's iterator draws from the generators when it is made, ours included.
        iterator = super().__iter__()
        return iterator if self.why_not() else _Batches(self, iterator)

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
        return _index_runs(self.batch_sampler)


class _Batches:
    """The iterator of a loader that gathers."""

    __slots__ = ("_dataset", "_indices", "_iterator")

    def __init__(self, loader: DataLoader, iterator: Any) -> None:
        self._dataset = loader.dataset
        self._indices = _index_batches(loader.batch_sampler)
        self._iterator = iterator

    def __iter__(self) -> "_Batches":
        return self

    def __len__(self) -> int:
        return len(self._iterator)

    def __next__(self) -> list[Tensor]:
        index = next(self._indices)
        return [tensor.index_select(0, index) for tensor in self._dataset.tensors]


def _index_batches(batch_sampler: Any) -> Iterator[Tensor]:
    """What iter(batch_sampler) yields, as int64 tensors."""
    for indices, size in _index_runs(batch_sampler):
        for start in range(0, len(indices), _CUT * size):
            yield from indices[start : start + _CUT * size].split(size)


def _index_runs(batch_sampler: Any) -> Iterator[tuple[Tensor, int]]:
    """See DataLoader.index_runs. Draws what RandomSampler draws, when it does: at the first batch,
    and from a generator that was passed once more when it runs out.
    """
    sampler, size = batch_sampler.sampler, batch_sampler.batch_size
    drop_last, n = batch_sampler.drop_last, len(sampler.data_source)
    given = None
    if type(sampler) is RandomSampler:
        generator = given = sampler.generator
        if generator is None:
            seed = int(torch.empty((), dtype=torch.int64).random_().item())
            generator = torch.Generator()
            generator.manual_seed(seed)
        order = torch.randperm(n, generator=generator).cpu()  # where the default device is another
    else:
        order = torch.arange(n, device="cpu")
    whole = n - n % size
    if whole:
        yield order[:whole], size
    if given is not None:
        torch.randperm(n, generator=given)
    if whole < n and not drop_last:
        yield order[whole:], n - whole


@functools.cache
def _draws_as_known() -> bool:
    """Whether this torch's samplers draw as _index_batches does, tried on generators of its own."""
    with torch.device("cpu"):
        for size, drop_last in ((2, False), (2, True), (4, False), (4, True)):
            ours, theirs = torch.Generator(), torch.Generator()
            here = _index_batches(
                BatchSampler(RandomSampler(range(6), generator=ours), size, drop_last)
            )
            there = iter(BatchSampler(RandomSampler(range(6), generator=theirs), size, drop_last))
            batch: list[int] | None = []
            while batch is not None:
                batch, index = next(there, None), next(here, None)
                if (None if index is None else index.tolist()) != batch:
                    return False
                if not torch.equal(ours.get_state(), theirs.get_state()):
                    return False
    return True


def _collates_as_known() -> bool:
    """Whether default_collate stacks tensors: its table may be extended, as its docstring says."""
    table = _collate.default_collate_fn_map
    stacks = table.get(Tensor) is _collate.collate_tensor_fn
    return stacks and not any(isinstance((), kind) for kind in table)


def _why_not(tensor: Tensor) -> str:
    """What keeps index_select from giving what torch.stack of the tensor's rows gives, or ""."""
    if type(tensor) is not Tensor:
        return f"is a {type(tensor).__name__}"
    if tensor.device.type != "cpu":
        return f"is on {tensor.device}"
    if tensor.layout != torch.strided or tensor.is_nested:
        return "is not dense"
    if tensor.is_conj() or tensor.is_neg():  # index_select would resolve all of it for each batch
        return "is a conjugate or negative view"
    if tensor.dim() > 4 and not tensor.is_contiguous():  # stack keeps channels_last of the samples
        return "has samples of 4 dimensions or more and is not contiguous"
    if not _selects(tensor.dtype):
        return f"is {str(tensor.dtype).removeprefix('torch.')}, which index_select does not take"
    return ""


@functools.cache
def _selects(dtype: torch.dtype) -> bool:
    try:
        index = torch.zeros(1, dtype=torch.int64, device="cpu")
        torch.empty(1, dtype=dtype, device="cpu").index_select(0, index)
    except RuntimeError:  # NotImplementedError is one
        return False
    return True


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
            sample 0 (the message has the index and both), and for an empty dataset.
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
