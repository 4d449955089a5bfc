"""Both DataLoaders side by side: what a user can see of a pass, and the comparison."""

import torch
import torch.utils.data as theirs
from torch.utils.data import TensorDataset

from mlp_ext import data as ours

KINDS = (ours.DataLoader, theirs.DataLoader)


class Doubled(TensorDataset):
    def __getitem__(self, index):
        return tuple(2 * tensor for tensor in super().__getitem__(index))


def dataset_of(n, columns=3):
    return TensorDataset(torch.arange(n * columns).reshape(n, columns) / 7, torch.arange(n) % 5)


def states(generator=None):
    """The global generator's state and that of the passed one."""
    both = [torch.get_rng_state()]
    return both if generator is None else [*both, generator.get_state()]


def record(kind, dataset, *, passes=2, with_generator=False, **options):
    """All that a user can see of some passes: each batch, and the generators after each call."""
    torch.manual_seed(7)
    generator = torch.Generator().manual_seed(5) if with_generator else None
    loader = kind(dataset, generator=generator, **options)
    log = [len(loader), states(generator)]
    for _ in range(passes):
        iterator = iter(loader)
        log += [len(iterator), states(generator)]
        for batch in iterator:
            log += [batch, states(generator)]
        log.append(states(generator))
    return log


def assert_same(mine, other):
    assert type(mine) is type(other)
    if isinstance(mine, (list, tuple)):
        assert len(mine) == len(other)
        for a, b in zip(mine, other, strict=True):
            assert_same(a, b)
    elif isinstance(mine, dict):
        assert_same(list(mine.items()), list(other.items()))
    elif isinstance(mine, torch.Tensor):
        for attribute in ("dtype", "shape", "layout", "device", "requires_grad", "is_leaf"):
            assert getattr(mine, attribute) == getattr(other, attribute), attribute
        if mine.layout == torch.strided:
            assert mine.stride() == other.stride()
            assert mine.is_conj() == other.is_conj()
        if mine.is_floating_point() and mine.element_size() == 1:
            mine, other = mine.view(torch.uint8), other.view(torch.uint8)
        torch.testing.assert_close(mine, other, rtol=0, atol=0, equal_nan=True)
    else:
        assert mine == other


def assert_as_torch(dataset, gathers=True, **options):
    loader = ours.DataLoader(dataset, **options)
    assert loader.gathers is gathers, loader.why_not()
    mine, other = (record(kind, dataset, **options) for kind in KINDS)
    assert_same(mine, other)
    return mine


def passes(kind, make=lambda: dataset_of(9), *, between=lambda loader, batch: None, **options):
    """What a user sees of two passes, errors included; `between` acts after each batch."""
    torch.manual_seed(3)
    log = []
    loader = kind(make(), **{"batch_size": 4, **options})
    for _ in range(2):
        try:
            for position, batch in enumerate(loader):
                log += [batch, states()]
                between(loader, position)
        except Exception as error:
            log.append(type(error).__name__)
    return log


def assert_passes_alike(**options):
    assert_same(*(passes(kind, **options) for kind in KINDS))
