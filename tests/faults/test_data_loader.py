"""mlp_ext.data.DataLoader beside torch's where other code has replaced what torch's runs, and where
somebody listens: it runs too."""

import pytest
import torch
from loaders import KINDS, assert_passes_alike, assert_same, dataset_of, passes
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler, TensorDataset
from torch.utils.data._utils import collate, fetch
from torch.utils.data.dataloader import _BaseDataLoaderIter, _SingleProcessDataLoaderIter

from mlp_ext import TrainStep
from mlp_ext import data as ours

# ---- patches


def wrapped(owner, name, calls):
    own = vars(owner)[name]
    function = own.__func__ if isinstance(own, staticmethod) else own

    def wrapper(*args, **kwargs):
        calls.append(name)
        return function(*args, **kwargs)

    return staticmethod(wrapper) if isinstance(own, staticmethod) else wrapper


PATCHES = [
    (TensorDataset, "__getitem__"),
    (TensorDataset, "__len__"),
    (RandomSampler, "__iter__"),
    (SequentialSampler, "__iter__"),
    (BatchSampler, "__iter__"),
    (_BaseDataLoaderIter, "__next__"),
    (_BaseDataLoaderIter, "_next_index"),
    (_SingleProcessDataLoaderIter, "_next_data"),
    (fetch._MapDatasetFetcher, "fetch"),
    (collate, "collate"),
    (collate, "default_collate"),
    (torch, "stack"),
]


@pytest.mark.parametrize(("owner", "name"), PATCHES, ids=lambda p: getattr(p, "__name__", p))
def test_patched_code_runs(owner, name, monkeypatch):
    """As often as under torch's loader; and when it is gone, batches are gathered again."""
    shuffle = owner is RandomSampler
    counts = []
    with monkeypatch.context() as patch:
        calls = []
        patch.setattr(owner, name, wrapped(owner, name, calls))
        for kind in KINDS:
            loader = kind(dataset_of(9), 4, shuffle=shuffle)
            if kind is ours.DataLoader:
                assert not loader.gathers and loader.why_not()
            calls.clear()
            list(loader)
            counts.append(len(calls))
    assert counts[0] == counts[1]
    assert counts[0] > 0 or name in ("__len__", "default_collate")
    assert ours.DataLoader(dataset_of(9), 4, shuffle=shuffle).gathers


def test_a_patch_in_the_middle_of_a_pass(monkeypatch):
    logs = []
    for kind in KINDS:
        with monkeypatch.context() as patch:

            def between(loader, position, patch=patch):
                if position == 0:
                    of_index = lambda self, index: (index, index)  # noqa: E731
                    patch.setattr(TensorDataset, "__getitem__", of_index)

            logs.append(passes(kind, between=between))
    assert_same(*logs)


@pytest.mark.parametrize("place", ["class", "instance"])
def test_getitems(place, monkeypatch):
    def make():
        dataset = dataset_of(9)
        if place == "instance":
            dataset.__getitems__ = lambda indices: [(i,) for i in indices]
        return dataset

    if place == "class":
        many = lambda self, indices: [(-i,) for i in indices]  # noqa: E731
        monkeypatch.setattr(TensorDataset, "__getitems__", many, raising=False)
    assert "__getitems__" in ours.DataLoader(make(), 4).why_not()
    assert_passes_alike(make=make)


def test_a_patched_method_of_tensor(monkeypatch):
    own = torch.Tensor.__getitem__
    monkeypatch.setattr(torch.Tensor, "__getitem__", lambda t, i: own(t, i).neg(), raising=False)
    assert "__getitem__" in ours.DataLoader(dataset_of(9), 4).why_not()
    assert_passes_alike()


def test_an_iterator_of_a_subclass():
    class Once(ours.DataLoader):
        def _get_iterator(self):
            return iter(["mine"])

    assert list(Once(dataset_of(9), 4)) == ["mine"]


# ---- modes, and other contexts


class Functions(TorchFunctionMode):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen.append(getattr(function, "__name__", str(function)))
        return function(*args, **(kwargs or {}))


class Dispatches(TorchDispatchMode):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Functions, Dispatches])
@pytest.mark.parametrize("whole", [True, False], ids=["pass", "batch"])
def test_modes_see_what_torchs_loader_does(mode, whole):
    logs = []
    for kind in KINDS:
        torch.manual_seed(3)
        loader, seen = kind(dataset_of(9), 4, shuffle=True), []
        if whole:
            with mode(seen):
                assert not getattr(loader, "gathers", False)
                batches = list(loader)
        else:
            iterator = iter(loader)
            batches = [next(iterator)]
            with mode(seen):
                batches.append(next(iterator))
            batches.append(next(iterator))
        logs.append([batches, sorted(set(seen)) if whole else [n for n in seen if "stack" in n]])
    assert logs[0][1]
    assert_same(*logs)


CONTEXTS = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "device": lambda: torch.device("cpu"),
    "meta": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("context", CONTEXTS)
def test_contexts(context, shuffle):
    def run(kind):
        dataset = dataset_of(9)
        with CONTEXTS[context]():
            log = passes(kind, lambda: dataset, shuffle=shuffle)
        inference = [t.is_inference() for b in log if isinstance(b, list) for t in b]
        return [log, inference]

    assert_same(*map(run, KINDS))


def test_datasets_made_in_inference_mode():
    with torch.inference_mode():
        dataset = TensorDataset(torch.randn(9, 3), torch.arange(9))
    assert_passes_alike(make=lambda: dataset, shuffle=True)
    assert not any(t.is_inference() for t in next(iter(ours.DataLoader(dataset, 4))))


def test_profilers_see_the_iterator():
    names = []
    for kind in KINDS:
        with torch.profiler.profile() as profiler:
            list(kind(dataset_of(9), 4))
        events = profiler.key_averages()
        names.append([(e.key, e.count) for e in events if e.key.startswith("enumerate")])
    assert names[0] == names[1] and names[0]


# ---- TrainStep.epoch takes the same decision


def test_epochs_obey_patches(monkeypatch):
    dataset = TensorDataset(torch.randn(12, 3), torch.randn(12, 2))
    own = TensorDataset.__getitem__
    monkeypatch.setattr(
        TensorDataset, "__getitem__", lambda self, index: tuple(2 * t for t in own(self, index))
    )
    means = []
    for kind in KINDS:
        torch.manual_seed(3)
        model = torch.nn.Sequential(torch.nn.Linear(3, 2))
        step = TrainStep(
            model, torch.nn.functional.mse_loss, torch.optim.SGD(model.parameters(), 0)
        )
        means.append(step.epoch(kind(dataset, 4)))
    assert means[0] == pytest.approx(means[1])
