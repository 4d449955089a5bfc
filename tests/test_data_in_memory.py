"""mlp_ext.data.in_memory: torch's collated dtypes and shapes, refusals, progress."""

import collections

import numpy as np
import pytest
import torch
import torch.utils.data as theirs
from loaders import Doubled, assert_same, dataset_of, states
from torch.utils.data import TensorDataset, default_collate

from mlp_ext import data as ours


class Samples(theirs.Dataset):
    """A map-style dataset of what `make(index)` gives; writes down what is asked of it."""

    def __init__(self, n, make):
        self.n, self.make, self.asked = n, make, []

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        self.asked.append(index)
        return self.make(index)


Point = collections.namedtuple("Point", "x y")

FIELDS = {
    "tensor_int": lambda i: (torch.full((2, 3), float(i)), i),
    "list": lambda i: [torch.tensor(i), 0.5 * i],
    "namedtuple": lambda i: Point(torch.ones(2), bool(i % 2)),
    "numpy": lambda i: (np.full(3, i, np.float32), np.full((1, 2), i, np.int16)),
    "numpy_scalars": lambda i: (np.float32(i), np.int64(i), np.bool_(i % 2), np.uint8(i % 200)),
    "numbers": lambda i: (i, float(i), i % 2 == 0),
    "bfloat16": lambda i: (torch.full((4,), i, dtype=torch.bfloat16),),
}


@pytest.mark.parametrize("fields", FIELDS)
def test_in_memory_collates_as_torch(fields):
    for n in (1, 5, ours._CHUNK, ours._CHUNK + 1):
        dataset = Samples(n, FIELDS[fields])
        result = ours.in_memory(dataset)
        assert type(result) is TensorDataset and len(result) == n
        assert dataset.asked == list(range(n))
        expected = default_collate([FIELDS[fields](i) for i in range(n)])
        assert_same(list(result.tensors), list(expected))


def test_in_memory_dtypes():
    result = ours.in_memory(Samples(3, lambda i: (i, 0.5, True, torch.ones(2))))
    dtypes = [tensor.dtype for tensor in result.tensors]
    assert dtypes == [torch.int64, torch.float64, torch.bool, torch.float32]


def test_in_memory_is_a_copy():
    x, array = torch.zeros(3, 2), np.zeros((3, 2))
    result = ours.in_memory(Samples(3, lambda i: (x[i], array[i])))
    x += 1
    array += 1
    assert all((tensor == 0).all() for tensor in result.tensors)


def test_in_memory_of_mixed_dtypes():
    n = ours._CHUNK + 1
    last = torch.float64
    dataset = Samples(n, lambda i: (torch.zeros(1, dtype=last if i == n - 1 else torch.float32),))
    assert ours.in_memory(dataset).tensors[0].dtype == torch.float64


def test_in_memory_of_tensor_datasets():
    dataset = dataset_of(4)
    assert ours.in_memory(dataset) is dataset
    doubled = ours.in_memory(Doubled(*dataset.tensors))
    assert type(doubled) is TensorDataset
    assert_same(doubled.tensors[0], 2 * dataset.tensors[0])


def test_in_memory_reads_batches_where_the_dataset_has_them():
    class Batches(Samples):
        def __getitems__(self, indices):
            self.asked.append(indices)
            return [self.make(index) for index in indices]

    n = 2 * ours._CHUNK + 1
    dataset = Batches(n, lambda i: (i,))
    assert_same(ours.in_memory(dataset).tensors[0], torch.arange(n))
    assert len(dataset.asked) == 3 and sum(dataset.asked, []) == list(range(n))
    subset = theirs.Subset(dataset_of(9), [4, 2, 2])
    assert_same(ours.in_memory(subset).tensors[1], torch.tensor([4, 2, 2]))


def test_in_memory_then_gathers():
    dataset = Samples(20, FIELDS["tensor_int"])
    loader = ours.DataLoader(ours.in_memory(dataset), 6, shuffle=True)
    assert loader.gathers
    logs = []
    for one in (loader, theirs.DataLoader(dataset, 6, shuffle=True)):
        torch.manual_seed(8)
        logs.append([*one, states()])
    assert_same(*logs)


RAGGED = {
    "shape": (lambda i: (0, torch.ones(2 + i // 3)), r"field 1 of sample 3 .*\(3,\).*\(2,\)"),
    "dimension": (lambda i: (np.ones((2,) * (1 + i // 300)), 0), r"sample 300 .*\(2, 2\).*\(2,\)"),
    "number": (lambda i: (torch.ones(2) if i == 1 else 1,), r"sample 1 .*\(2,\).*\(\)"),
    "fields": (lambda i: (1,) * (2 + i // 4), "sample 4 has 3 fields, sample 0 has 2"),
}


@pytest.mark.parametrize("case", RAGGED)
def test_in_memory_of_ragged_samples(case):
    make, message = RAGGED[case]
    with pytest.raises(ValueError, match=message):
        ours.in_memory(Samples(500, make))


class Stream(theirs.IterableDataset):
    def __iter__(self):
        return iter([])


class NoLength(theirs.Dataset):
    def __getitem__(self, index):
        return index, index


WRONG = {
    "dict": (Samples(2, lambda i: {"x": i}), "tuples or lists .* sample 0 is a dict"),
    "tensor": (Samples(2, lambda i: torch.ones(3)), "sample 0 is a Tensor"),
    "array": (Samples(2, lambda i: np.ones(3)), "sample 0 is a ndarray"),
    "number": (Samples(2, lambda i: i), "sample 0 is a int"),
    "empty": (Samples(2, lambda i: ()), "sample 0 is an empty tuple"),
    "later": (Samples(2, lambda i: None if i else (1,)), "sample 1 is a NoneType"),
    "string": (Samples(2, lambda i: (1, "a")), "field 1 is a str"),
    "nested": (Samples(2, lambda i: ((1, 2), 3)), "field 0 is a tuple"),
    "inner_dict": (Samples(2, lambda i: (1, {"a": 1})), "field 1 is a dict"),
    "none": (Samples(2, lambda i: (1, None)), "field 1 is a NoneType"),
    "objects": (Samples(2, lambda i: (np.array([None]),)), "field 0 is a ndarray"),
    "iterable": (Stream(), "IterableDataset"),
    "no_length": (NoLength(), "NoLength has no __len__"),
}


@pytest.mark.parametrize("case", WRONG)
def test_in_memory_refuses(case):
    dataset, message = WRONG[case]
    with pytest.raises(TypeError, match=message):
        ours.in_memory(dataset)


def test_in_memory_of_nothing():
    with pytest.raises(ValueError, match="empty"):
        ours.in_memory(Samples(0, lambda i: (i,)))
    with pytest.raises(TypeError, match="progress"):
        ours.in_memory(Samples(1, lambda i: (i,)), progress=True)


def test_in_memory_lets_errors_of_the_dataset_through():
    with pytest.raises(ZeroDivisionError):
        ours.in_memory(Samples(3, lambda i: (1 // (1 - i),)))


class Clock:
    """time.monotonic, where each look takes `step` seconds."""

    def __init__(self, step):
        self.now, self.step = 0.0, step

    def monotonic(self):
        self.now += self.step
        return self.now


def test_progress_function(monkeypatch):
    monkeypatch.setattr(ours, "time", Clock(0.03))
    calls = []
    ours.in_memory(Samples(10, lambda i: (i,)), progress=lambda *call: calls.append(call))
    assert calls == [(4, 10), (8, 10), (10, 10)]


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "file"])
@pytest.mark.parametrize("step", [0.5, 0.0001], ids=["long", "short"])
def test_progress_line(monkeypatch, capsys, terminal, step):
    monkeypatch.setattr(ours, "time", Clock(step))
    monkeypatch.setattr(ours.sys.stderr, "isatty", lambda: terminal, raising=False)
    ours.in_memory(Samples(10, lambda i: (i,)))
    out, err = capsys.readouterr()
    assert out == ""
    if terminal and step == 0.5:
        lines = [f"\rin_memory: {i} of 10 samples" for i in range(5, 11)]
        assert err == "".join(lines) + "\n"
    else:
        assert err == ""


def test_in_memory_of_samples_that_require_a_gradient():
    """Their graph would be gone after the first epoch."""
    x = torch.nn.Parameter(torch.ones(3, 2))
    dataset = Samples(3, lambda i: (x[i], i))
    with pytest.raises(ValueError, match="samples 0 to 2 require a gradient"):
        ours.in_memory(dataset)
    with torch.no_grad():
        assert not ours.in_memory(dataset).tensors[0].requires_grad
