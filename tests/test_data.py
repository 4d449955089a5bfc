"""mlp_ext.data.DataLoader where it gathers: torch's batches, order and draws from generators."""

import pytest
import torch
import torch.utils.data as theirs
from loaders import KINDS, assert_as_torch, assert_same, dataset_of, record, states
from torch.utils.data import RandomSampler, SequentialSampler, TensorDataset

from mlp_ext import _gathering
from mlp_ext import data as ours


@pytest.mark.parametrize("with_generator", [False, True], ids=["global", "generator"])
@pytest.mark.parametrize("shuffle", [False, True], ids=["sequential", "shuffled"])
@pytest.mark.parametrize("drop_last", [False, True], ids=["all", "drop_last"])
def test_batches_and_generators(drop_last, shuffle, with_generator):
    """Sizes that divide and that do not, one sample, and a batch larger than the dataset."""
    for n in (1, 2, 7, 12):
        for size in (1, 2, 3, 7, 100):
            for kind in KINDS:
                loader = kind(dataset_of(n), size, shuffle=shuffle, drop_last=drop_last)
                assert getattr(loader, "gathers", True)
            options = {"batch_size": size, "shuffle": shuffle, "drop_last": drop_last}
            logs = [
                record(kind, dataset_of(n), with_generator=with_generator, **options)
                for kind in KINDS
            ]
            assert_same(*logs)


@pytest.mark.parametrize("shuffle", [False, True], ids=["sequential", "shuffled"])
def test_more_batches_than_are_cut_at_a_time(shuffle):
    dataset = dataset_of(2 * _gathering._CUT + 3)
    for size in (1, 2):
        mine, other = (
            [batch[1] for batch in kind(dataset, size, shuffle=shuffle, generator=generator)]
            for kind in KINDS
            for generator in [torch.Generator().manual_seed(1)]
        )
        assert_same(mine, other)


DTYPES = [
    *(torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    *(torch.complex64, torch.complex128),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_dtypes(dtype):
    values = torch.arange(-9, 12).to(dtype)
    assert_as_torch(TensorDataset(values, values.reshape(21, 1)), batch_size=4, shuffle=True)


LAYOUTS = {
    "transposed": lambda: torch.randn(5, 9).t(),
    "expanded": lambda: torch.randn(1, 5).expand(9, 5),
    "expanded_rows": lambda: torch.randn(9, 1).expand(9, 5),
    "one_value": lambda: torch.tensor(2.0).expand(9),
    "strided": lambda: torch.randn(18, 10)[::2, 1::3],
    "column": lambda: torch.randn(9, 4)[:, 2],
    "images": lambda: torch.randn(9, 3, 4, 5),
    "channels_last": lambda: torch.randn(9, 3, 4, 5).to(memory_format=torch.channels_last),
    "permuted": lambda: torch.randn(4, 9, 3).permute(1, 2, 0),
    "five_dimensions": lambda: torch.randn(9, 2, 1, 3, 2, 2),
    "no_columns": lambda: torch.randn(9, 0),
    "nan": lambda: torch.full((9, 2), float("nan")),
}


@pytest.mark.parametrize("shuffle", [False, True], ids=["sequential", "shuffled"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, shuffle):
    dataset = TensorDataset(LAYOUTS[layout](), torch.arange(9))
    assert_as_torch(dataset, batch_size=4, shuffle=shuffle)


def test_one_tensor_and_many():
    assert_as_torch(TensorDataset(torch.randn(9, 2)), batch_size=2)
    assert_as_torch(TensorDataset(*(torch.randn(9, i) for i in range(1, 6))), batch_size=2)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_gradients_reach_the_dataset(grad):
    gradients = []
    for kind in KINDS:
        torch.manual_seed(3)
        x = torch.randn(7, 2).requires_grad_()
        with torch.set_grad_enabled(grad):
            batches = [batch[0] for batch in kind(TensorDataset(x), 3, shuffle=True)]
        assert all(batch.requires_grad is grad for batch in batches)
        if grad:
            torch.cat(batches).pow(3).sum().backward()
        gradients.append(x.grad)
    assert_same(*gradients)


@pytest.mark.parametrize("shuffle", [False, True], ids=["sequential", "shuffled"])
def test_batches_are_the_users(shuffle):
    dataset = dataset_of(8)
    before = [tensor.clone() for tensor in dataset.tensors]
    batches = list(ours.DataLoader(dataset, 8, shuffle=shuffle))
    batches += list(ours.DataLoader(dataset, 3, shuffle=shuffle))
    for i, batch in enumerate(batches):
        for tensor in batch:
            assert tensor._version == 0 and tensor._base is None
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
            tensor.fill_(i)
    assert_same(list(dataset.tensors), before)
    assert all((tensor == i).all() for i, batch in enumerate(batches) for tensor in batch)


def test_two_iterators_at_once_and_breaking_out():
    logs = []
    for kind in KINDS:
        torch.manual_seed(11)
        loader = kind(dataset_of(10), 3, shuffle=True)
        first, second = iter(loader), iter(loader)
        log = [next(first), states(), next(second), states(), next(first), next(second), states()]
        for batch in loader:
            log.append(batch)
            break
        del first
        log += [*second, states(), *loader, states()]
        with pytest.raises(StopIteration):
            next(second)
        logs.append(log)
    assert_same(*logs)


def test_changes_of_the_dataset_are_seen():
    logs = []
    for kind in KINDS:
        dataset = dataset_of(6)
        loader = kind(dataset, 2)
        log = list(loader)
        dataset.tensors[0].mul_(2)
        log += list(loader)
        iterator = iter(loader)
        log.append(next(iterator))
        dataset.tensors[1][2:] = 9
        log.append(next(iterator))
        dataset.tensors = dataset_of(6, columns=5).tensors
        log.append(next(iterator))
        dataset.tensors = dataset_of(9).tensors
        log += [len(loader), *loader]
        logs.append(log)
    assert_same(*logs)


@pytest.mark.parametrize("shuffle", [False, True], ids=["sequential", "shuffled"])
def test_a_dataset_that_shrinks_in_the_middle(shuffle):
    for kind in KINDS:
        dataset = dataset_of(6)
        iterator = iter(kind(dataset, 3, shuffle=shuffle))
        next(iterator)
        dataset.tensors = dataset_of(1).tensors
        with pytest.raises(IndexError):
            next(iterator)


def test_a_dataset_that_becomes_empty():
    for kind in KINDS:
        dataset = dataset_of(6)
        loader = kind(dataset, 3, shuffle=True)
        dataset.tensors = dataset_of(0).tensors
        with pytest.raises(ZeroDivisionError):
            list(loader)


def test_empty_dataset():
    assert_as_torch(dataset_of(0), batch_size=3)
    for kind in KINDS:
        with pytest.raises(ValueError, match="num_samples"):
            kind(dataset_of(0), shuffle=True)


SAMPLERS = {
    "random": lambda d: {"sampler": RandomSampler(d)},
    "random_generator": lambda d: {
        "sampler": RandomSampler(d, generator=torch.Generator().manual_seed(3))
    },
    "random_part": lambda d: {"sampler": RandomSampler(range(5))},
    "sequential": lambda d: {"sampler": SequentialSampler(range(4))},
    "batch_sampler": lambda d: {
        "batch_size": 1,
        "batch_sampler": theirs.BatchSampler(RandomSampler(d), 4, drop_last=True),
    },
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_pytorchs_own_samplers_passed_by_hand(name):
    dataset = dataset_of(9)
    logs = []
    for kind in KINDS:
        options = {"batch_size": 2, **SAMPLERS[name](dataset)}
        assert ours.DataLoader(dataset, **options).gathers
        logs.append(record(kind, dataset, **options))
    assert_same(*logs)


def test_settings_changed_after_construction():
    logs = []
    for kind in KINDS:
        torch.manual_seed(2)
        loader = kind(dataset_of(9), 2, shuffle=True)
        log = list(loader)
        loader.batch_sampler.batch_size = 4
        loader.sampler.generator = torch.Generator().manual_seed(1)
        log += [*loader, states(loader.sampler.generator)]
        loader.batch_sampler.drop_last = True
        log += [*loader, states(loader.sampler.generator)]
        loader.collate_fn = len
        log += list(loader)
        logs.append(log)
    assert_same(*logs)


@pytest.mark.parametrize("with_generator", [False, True], ids=["global", "generator"])
@pytest.mark.parametrize("shuffle", [False, True], ids=["sequential", "shuffled"])
def test_index_runs(shuffle, with_generator):
    """The indices of iter(loader)'s batches, and the same draws at the same times."""
    for n, drop_last in ((8, False), (7, False), (7, True), (1, False), (1, True)):
        logs = []
        for indices in (True, False):
            torch.manual_seed(9)
            generator = torch.Generator().manual_seed(1) if with_generator else None
            loader = ours.DataLoader(
                TensorDataset(torch.arange(n)),
                2,
                shuffle=shuffle,
                drop_last=drop_last,
                generator=generator,
            )
            log = [states(generator)]
            if indices:
                for index, size in loader.index_runs():
                    for batch in index.split(size):
                        log += [batch, states(generator)]
            else:
                for (batch,) in loader:
                    log += [batch, states(generator)]
            logs.append([*log, states(generator)])
        assert_same(*logs)


def test_index_runs_needs_a_loader_that_gathers():
    loader = ours.DataLoader(dataset_of(4), None, shuffle=True)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="batch_size is None"):
        loader.index_runs()
    assert torch.equal(torch.get_rng_state(), before)
