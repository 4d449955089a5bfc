"""mlp_ext.data.DataLoader where torch's own iterator runs, and as a DataLoader otherwise."""

import pickle

import pytest
import torch
import torch.utils.data as theirs
from loaders import KINDS, Doubled, assert_as_torch, assert_same, dataset_of, record, states
from torch.utils.data import RandomSampler, TensorDataset
from torch.utils.data._utils import collate as torch_collate

from mlp_ext import _gathering
from mlp_ext import data as ours


class Backwards(theirs.Sampler):
    def __init__(self, n):
        self.n = n

    def __iter__(self):
        return iter(range(self.n - 1, -1, -1))

    def __len__(self):
        return self.n


def stacked(samples):
    return torch.stack([sample[0] for sample in samples])


def with_first(tensor):
    return lambda: {"dataset": TensorDataset(tensor(), torch.arange(9))}


OWN_PATH = {
    "Doubled": lambda: {"dataset": Doubled(*dataset_of(9).tensors)},
    "Subset": lambda: {"dataset": theirs.Subset(dataset_of(9), [4, 2, 2, 0])},
    "is a list": lambda: {"dataset": [(torch.ones(2), i) for i in range(5)]},
    "list, no TensorDataset": lambda: {"dataset": [{"x": torch.ones(2)} for _ in range(5)]},
    "collate_fn": lambda: {"collate_fn": stacked},
    "batch_size is None": lambda: {"batch_size": None},
    "Backwards": lambda: {"sampler": Backwards(9)},
    "a list, no BatchSampler": lambda: {"batch_sampler": [[0, 3], [1]], "batch_size": 1},
    "replacement": lambda: {"sampler": RandomSampler(dataset_of(9), replacement=True)},
    "num_samples": lambda: {"sampler": RandomSampler(dataset_of(9), num_samples=20)},
    "SubsetRandomSampler": lambda: {"sampler": theirs.SubsetRandomSampler([1, 2, 5])},
    "Parameter": with_first(lambda: torch.nn.Parameter(torch.randn(9, 2))),
    "meta": with_first(lambda: torch.randn(9, 2, device="meta")),
    "conjugate": with_first(lambda: torch.randn(9, 2, dtype=torch.complex64).conj()),
    "negative": with_first(lambda: torch.randn(9, 2, dtype=torch.complex64).conj().imag),
    "contiguous": with_first(lambda: torch.randn(9, 2, 4, 5, 3).permute(0, 1, 4, 2, 3)),
}
try:
    torch.zeros(1, dtype=torch.uint16).index_select(0, torch.tensor([0]))  # from torch 2.14
except NotImplementedError:
    OWN_PATH["uint16"] = with_first(lambda: torch.arange(9).to(torch.uint16))


@pytest.mark.parametrize("reason", OWN_PATH)
def test_own_path(reason):
    case = {"dataset": dataset_of(9), "batch_size": 2, **OWN_PATH[reason]()}
    loader = ours.DataLoader(**case)
    assert reason in loader.why_not()
    assert not loader.gathers
    assert isinstance(iter(loader), type(iter(theirs.DataLoader(**case))))
    if reason == "meta":
        assert next(iter(loader))[0].device.type == "meta"
        return
    logs = [[record(kind, **case, with_generator=g) for kind in KINDS] for g in (False, True)]
    for mine, other in logs:
        assert_same(mine, other)


def test_sparse_raises_as_in_torch():
    dataset = TensorDataset(torch.eye(4).to_sparse())
    assert "not dense" in ours.DataLoader(dataset, 2).why_not()
    for kind in KINDS:
        with pytest.raises(RuntimeError, match="sparse"):
            list(kind(dataset, 2))


def test_workers():
    dataset = dataset_of(5)
    assert "num_workers" in ours.DataLoader(dataset, 2, num_workers=1).why_not()
    logs = []
    for kind in KINDS:
        torch.manual_seed(1)
        logs.append([*kind(dataset, 2, shuffle=True, num_workers=1), states()])
    assert_same(*logs)


def test_within_a_worker(monkeypatch):
    loader = ours.DataLoader(dataset_of(5), 2)
    assert loader.gathers
    monkeypatch.setattr(_gathering, "get_worker_info", lambda: object())
    assert "worker" in loader.why_not()


@pytest.mark.filterwarnings("ignore:.*pin_memory")
def test_pin_memory():
    loader = ours.DataLoader(dataset_of(5), 2, pin_memory=True)
    assert "pin_memory" in loader.why_not()
    assert len(list(loader)) == 3


@pytest.mark.parametrize("kind", [torch.Tensor, tuple])
def test_an_extended_default_collate_is_heard(kind, monkeypatch):
    monkeypatch.setitem(
        torch_collate.default_collate_fn_map, kind, lambda batch, *, collate_fn_map: "mine"
    )
    loader = ours.DataLoader(dataset_of(4), 2)
    assert not loader.gathers
    assert list(loader) == list(theirs.DataLoader(dataset_of(4), 2))


def test_a_random_sampler_that_draws_otherwise(monkeypatch):
    """As another torch's might: then its own path is taken, and nothing differs."""

    def draws(self):
        return iter(torch.randperm(len(self), generator=self.generator).flip(0).tolist())

    monkeypatch.setattr(RandomSampler, "__iter__", draws)
    _gathering._draws_as_known.cache_clear()
    try:
        assert_as_torch(dataset_of(7), gathers=False, batch_size=2, shuffle=True)
    finally:
        _gathering._draws_as_known.cache_clear()


def test_the_trial_of_the_sampler_draws_nothing():
    _gathering._draws_as_known.cache_clear()
    before = torch.get_rng_state()
    assert _gathering._draws_as_known()
    assert torch.equal(torch.get_rng_state(), before)


def test_iterable_dataset():
    class Count(theirs.IterableDataset):
        def __iter__(self):
            return iter(range(5))

    loader = ours.DataLoader(Count(), 2)
    assert "Count" in loader.why_not()
    assert_same(list(loader), list(theirs.DataLoader(Count(), 2)))


def test_attributes():
    generator = torch.Generator()
    mine, other = (kind(dataset_of(6), 4, shuffle=True, generator=generator) for kind in KINDS)
    assert isinstance(mine, theirs.DataLoader)
    assert set(vars(mine)) == set(vars(other))
    for name, value in vars(other).items():
        if name not in ("dataset", "sampler", "batch_sampler"):
            assert getattr(mine, name) == value, name
    assert type(mine.sampler) is RandomSampler and type(mine.batch_sampler) is theirs.BatchSampler
    with pytest.raises(ValueError, match="should not be set after DataLoader"):
        mine.batch_size = 3
    assert ours.DataLoader[int]


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"batch_size": 2.0},
        {"num_workers": -1},
        {"shuffle": True, "sampler": range(3)},
        {"batch_size": None, "drop_last": True},
        {"persistent_workers": True},
        {"prefetch_factor": 2},
        {"pin": True},
    ],
    ids=str,
)
def test_constructor_errors(options):
    errors = []
    for kind in KINDS:
        with pytest.raises((ValueError, TypeError)) as caught:
            kind(dataset_of(3), **options)
        errors.append((caught.type, str(caught.value)))
    assert errors[0] == errors[1]


def test_timeout_raises_as_in_torch():
    for kind in KINDS:
        with pytest.raises(AssertionError, match="timeout"):
            iter(kind(dataset_of(3), timeout=1))


def test_pickle():
    loader = ours.DataLoader(dataset_of(9), 2, shuffle=True, drop_last=True)
    next(iter(loader))
    copied = pickle.loads(pickle.dumps(loader))
    assert type(copied) is ours.DataLoader and copied.gathers
    logs = []
    for one in (loader, copied):
        torch.manual_seed(4)
        logs.append(list(one))
    assert_same(*logs)
