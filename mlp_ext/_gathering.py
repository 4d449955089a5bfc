"""Where a DataLoader's batches may be gathered whole, and how: as torch's iterator gives them.

The order of samples, and what is drawn for it, are those of torch's samplers; where any of torch's
own code that is passed over has been replaced, or somebody listens, that code runs.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import _profiler_enabled
from torch.autograd.profiler import record_function
from torch.utils.data import (
    BatchSampler,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    dataloader,
    dataset,
    default_collate,
    get_worker_info,
    sampler,
)
from torch.utils.data._utils import collate as _collate
from torch.utils.data._utils import fetch as _fetch
from torch.utils.data.dataloader import _BaseDataLoaderIter, _SingleProcessDataLoaderIter

from . import _surroundings  # noqa: F401  (which mode counts as none)
from ._load import _C

_DATA: int = _C.PART_DATA
for _class, _name, _home in (
    (TensorDataset, "__getitem__", dataset),
    (TensorDataset, "__len__", dataset),
    (RandomSampler, "__iter__", sampler),
    (SequentialSampler, "__iter__", sampler),
    (BatchSampler, "__iter__", sampler),
    (_BaseDataLoaderIter, "__next__", dataloader),
    (_BaseDataLoaderIter, "_next_index", dataloader),
    (_SingleProcessDataLoaderIter, "_next_data", dataloader),
    (_fetch._MapDatasetFetcher, "fetch", _fetch),
):
    _C.watch(_DATA, _class, _name, _home)
_C.watch(_DATA, _collate, "collate", _collate)
_C.watch(_DATA, torch, "stack", torch)

# Batches whose indices are cut from the permutation at a time: a view costs 0.5 us and 0.5 KB.
_CUT = 1024


def why_not(loader: torch.utils.data.DataLoader) -> str:
    """Why a pass of the loader begun now is torch's, "" where its batches can be gathered."""
    data, batch_sampler = loader.dataset, loader.batch_sampler
    if type(data) is not TensorDataset:
        return f"the dataset is a {type(data).__name__}, no TensorDataset (see in_memory)"
    if getattr(data, "__getitems__", None):
        return "the dataset has a __getitems__"
    if loader.num_workers:
        return f"num_workers is {loader.num_workers}, not 0"
    if loader.pin_memory:
        return "pin_memory is set"
    if batch_sampler is None:
        return "batch_size is None"
    if loader.collate_fn is not default_collate or not _collates_as_known():
        return "collate_fn is not PyTorch's default_collate"
    if get_worker_info() is not None:
        return "in a worker process PyTorch collates into shared memory"
    if type(batch_sampler) is not BatchSampler:
        return f"the batch sampler is a {type(batch_sampler).__name__}, no BatchSampler"
    if not _is_size(batch_sampler.batch_size):
        return f"the batch size is {batch_sampler.batch_size!r}, no positive int"
    if not _C.as_usual(_DATA):  # before the trials below, which a mode would see and might change
        return _C.what_is_unusual(_DATA)
    of = batch_sampler.sampler
    if type(of) is RandomSampler:
        if of.replacement or not 0 < len(of.data_source) == of.num_samples:
            return "the RandomSampler has replacement or num_samples, or nothing to sample"
        if not _draws_as_known():
            return f"the RandomSampler of torch {torch.__version__} draws in another way"
    elif type(of) is not SequentialSampler:
        return f"the sampler is a {type(of).__name__}"
    if "__getitem__" in vars(Tensor):
        return "torch.Tensor.__getitem__ is patched"
    if reason := _C.why_not_gathered(data.tensors):
        return reason
    for position, tensor in enumerate(data.tensors):
        if not _selects(tensor.dtype):
            dtype = str(tensor.dtype).removeprefix("torch.")
            return f"tensor {position} is {dtype}, which index_select does not take"
    return ""


class Batches:
    """The iterator of a loader that gathers. `iterator`: torch's of the same pass, not begun."""

    __slots__ = ("_dataset", "_indices", "_iterator")

    def __init__(
        self, loader: torch.utils.data.DataLoader, iterator: _SingleProcessDataLoaderIter
    ) -> None:
        self._dataset: Any = loader.dataset
        self._indices = _index_batches(loader.batch_sampler)
        self._iterator: Any = iterator

    def __iter__(self) -> "Batches":
        return self

    def __len__(self) -> int:
        return len(self._iterator)

    def __next__(self) -> Any:
        if _profiler_enabled():
            return self._profiled()
        index = next(self._indices)
        return _C.gather(self._dataset.tensors, index) or self._fetched(index)

    def _profiled(self) -> Any:
        with record_function(self._iterator._profile_name):
            index = next(self._indices)
            return _C.gather(self._dataset.tensors, index) or self._fetched(index)

    def _fetched(self, index: Tensor) -> Any:
        """The batch as torch's iterator makes it."""
        return self._iterator._dataset_fetcher.fetch(index.tolist())


def index_runs(batch_sampler: Any) -> Iterator[tuple[Tensor, int]]:
    """See DataLoader.index_runs. Draws what RandomSampler draws, when it does."""
    size, drop_last = batch_sampler.batch_size, batch_sampler.drop_last
    order, rest_of = _order(batch_sampler.sampler)
    n = len(order)
    whole = n - n % size
    if whole:
        yield order[:whole], size
    rest_of()
    if whole < n and not drop_last:
        yield order[whole:], n - whole


def _index_batches(batch_sampler: Any) -> Iterator[Tensor]:
    """What iter(batch_sampler) yields, as int64 tensors. Like that, it reads the size anew before
    each batch, unless it drops the last one."""
    size, drop_last = batch_sampler.batch_size, batch_sampler.drop_last
    order, rest_of = _order(batch_sampler.sampler)
    n, done, ended = len(order), 0, False
    while done + size <= n and (drop_last or batch_sampler.batch_size is size):
        for batch in order[done : done + min(_CUT, (n - done) // size) * size].split(size):
            yield batch
            done += size
            if batch_sampler.batch_size is not size and not drop_last:
                break
    while True:
        if not drop_last:
            size = batch_sampler.batch_size
        taken = len([*itertools.islice(range(n - done), size)])  # which knows what a size may be
        if not ended and (size is None or taken < size):
            order, ended = torch.cat([order[done:], rest_of()]), True
            n, done = len(order), 0
            continue
        if not taken or drop_last and taken < size:
            return
        yield order[done : done + taken]
        done += taken


def _is_size(size: Any) -> bool:
    return type(size) is int and size > 0


def _order(of: RandomSampler | SequentialSampler) -> tuple[Tensor, Callable[[], Tensor]]:
    """The samples of a pass, drawn now, and what draws once more when they are at their end: what
    a dataset has then that has grown meanwhile."""
    n = len(of.data_source)
    if type(of) is not RandomSampler:
        order = torch.arange(n, device="cpu")
        return order, lambda: order[:0]
    generator = of.generator
    if generator is None:
        seed = int(torch.empty((), dtype=torch.int64).random_().item())
        generator = torch.Generator()
        generator.manual_seed(seed)

    def drawn() -> Tensor:
        return torch.randperm(n, generator=generator).cpu()  # where the default device is another

    return drawn(), lambda: drawn()[: of.num_samples % n]


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


@functools.cache
def _selects(dtype: torch.dtype) -> bool:
    try:
        index = torch.zeros(1, dtype=torch.int64, device="cpu")
        torch.empty(1, dtype=dtype, device="cpu").index_select(0, index)
    except RuntimeError:  # NotImplementedError is one
        return False
    return True
