"""mlp_ext.data.DataLoader beside torch's where memory is freed, where dataset and sampler change in
the middle of a pass, and under settings at random."""

import pytest
import torch
from loaders import KINDS, assert_passes_alike, assert_same, dataset_of, passes, states
from torch.utils.data import RandomSampler, SequentialSampler, TensorDataset

from mlp_ext import data as ours

# ---- memory


@pytest.mark.parametrize("size", [0, 40])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("when", ["before", "between"])
def test_freed_and_cut_storages(when, which, size):
    """PyTorch gives the rows that are left, and raises at the first that is not."""

    def make():
        dataset = dataset_of(9)
        if when == "before":
            dataset.tensors[which].untyped_storage().resize_(size)
        return dataset

    def between(loader, position):
        if when == "between":
            loader.dataset.tensors[which].untyped_storage().resize_(size)

    if when == "before":
        assert "lost its memory" in ours.DataLoader(make(), 4).why_not()
    assert "RuntimeError" in passes(ours.DataLoader, make, between=between)
    assert_passes_alike(make=make, between=between)


# ---- what changes in the middle of a pass


def replaced(*tensors):
    def change(loader, position):
        loader.dataset.tensors = tensors

    return change


def resized(sizes):
    def change(loader, position):
        loader.batch_sampler.batch_size = sizes[position % len(sizes)]

    return change


class Marked(torch.Tensor):
    pass


CHANGES = {
    "another dtype": replaced(torch.arange(9).half(), torch.arange(9)),
    "a Parameter": replaced(torch.nn.Parameter(torch.randn(9, 2)), torch.arange(9)),
    "a subclass": replaced(torch.randn(9, 2).as_subclass(Marked), torch.arange(9)),
    "meta": replaced(torch.randn(9, 2, device="meta")),
    "sparse": replaced(torch.eye(9).to_sparse(), torch.arange(9)),
    "no rows": replaced(torch.arange(9), torch.tensor(2.0)),
    "another length": replaced(torch.randn(20, 3), torch.arange(5)),
    "longer": replaced(torch.arange(20), torch.arange(30)),
    "one more": replaced(torch.arange(9), torch.arange(9), torch.arange(9)),
    "none": replaced(),
    "a list": lambda loader, position: setattr(loader.dataset, "tensors", [torch.arange(9)]),
    "an array": lambda loader, position: setattr(loader.dataset, "tensors", torch.ones(2, 9)),
    "images": replaced(torch.randn(9, 2, 4, 5, 3).permute(0, 1, 4, 2, 3)),
    "set_": lambda loader, position: loader.dataset.tensors[0].set_(torch.randn(9, 2)),
    "resize_": lambda loader, position: loader.dataset.tensors[0].resize_(6, 2),
    "data": lambda loader, position: setattr(loader.dataset.tensors[0], "data", torch.ones(9, 1)),
    "batch size": resized([2, 3, 1]),
    "batch size, larger": resized([100]),
    "batch size, equal": resized([int("4")]),
    "batch size 0": resized([2, 0]),
    "batch size -1": resized([1, -1]),
    "batch size None": resized([None]),
    "batch size True": resized([True]),
    "batch size 2.0": resized([2.0]),
    "drop_last": lambda loader, position: setattr(loader.batch_sampler, "drop_last", True),
}


@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"drop_last": True}, {"given": True}])
@pytest.mark.parametrize("change", CHANGES)
def test_changes_between_batches(change, options):
    logs = []
    for kind in KINDS:
        given = dict(options)
        if given.pop("given", False):
            given |= {"shuffle": True, "generator": torch.Generator().manual_seed(2)}
        log = passes(kind, lambda: dataset_of(19), between=CHANGES[change], **given)
        logs.append([*log, states(given.get("generator"))])
    if change == "meta":  # nothing to compare but shapes
        logs = [[str(entry)[:9] for entry in log] for log in logs]
    assert_same(*logs)


# ---- settings, at random


def settings(seed):
    draw = torch.Generator().manual_seed(seed)

    def one_of(*values):
        return values[int(torch.randint(len(values), (), generator=draw))]

    n, options = one_of(1, 2, 7, 16, 33), {"batch_size": one_of(1, 2, 5, 16, 40)}
    options["drop_last"] = one_of(False, True)
    options["pin_memory"] = one_of(False, False, True)
    options["worker_init_fn"] = one_of(None, print)
    sampler = one_of("", "", "shuffle", "shuffle", "short", "long", "strange")
    if sampler == "shuffle":
        options["shuffle"] = True
    elif sampler:
        index = {
            "short": lambda: RandomSampler(range(max(1, n // 2))),
            "long": lambda: SequentialSampler(range(n + 3)),
            "strange": lambda: [-1, 0, -n, n - 1, n],
        }[sampler]
        options["sampler"] = index()
    generator = one_of(None, 5)
    dtype = one_of(torch.float32, torch.float64, torch.bfloat16, torch.int32, torch.bool)
    torch.manual_seed(seed)
    tensors = [torch.randn(n, *one_of((), (3,), (2, 4))).to(dtype) for _ in range(one_of(1, 2, 3))]
    if one_of(False, False, True):
        tensors[0] = tensors[0].expand(n, *tensors[0].shape[1:])
    return TensorDataset(*tensors), options, generator


@pytest.mark.filterwarnings("ignore:.*pin_memory")
@pytest.mark.parametrize(
    "seeds", [range(start, start + 50) for start in (0, 50, 100, 150)], ids=str
)
def test_settings_at_random(seeds):
    for seed in seeds:
        logs = []
        for kind in KINDS:
            dataset, options, generator = settings(seed)
            if generator is not None:
                generator = torch.Generator().manual_seed(generator)
            log = passes(kind, lambda d=dataset: d, generator=generator, **options)
            logs.append([*log, states(generator)])
        try:
            assert_same(*logs)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {settings(seed)[1:]}") from error
