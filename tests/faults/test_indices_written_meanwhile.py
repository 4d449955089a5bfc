"""Class indices that another thread writes while the loss reads them: an IndexError if it is seen
before the kernel runs, otherwise NaN for the row whose index was out of range when the kernel came
to it, and the right loss for every other; never an address made of such an index."""

import threading
import time

import pytest
import torch
import torch.nn.functional as F

from mlp_ext import functional

BAD = 10**9


def while_written(y, values, call, seconds=0.3):
    """The results of call() while a thread writes the values into y in turn, but for errors."""
    done = threading.Event()

    def write():
        while not done.is_set():
            for value in values:
                y.copy_(value)

    writer = threading.Thread(target=write)
    writer.start()
    end, results, errors = time.monotonic() + seconds, [], 0
    try:
        while time.monotonic() < end:
            try:
                results.append(call())
            except IndexError:
                errors += 1
    finally:
        done.set()
        writer.join()
    assert results or errors
    return results[-200:]


# Rows of few classes, rows of many, and images.
@pytest.mark.parametrize("shape", [(4096, 3), (1024, 100), (16, 5, 16, 16)])
@pytest.mark.parametrize("weighted", [False, True])
def test_of_each_row(shape, weighted, isa):
    x = torch.randn(shape, requires_grad=True)
    y = torch.randint(shape[1], (shape[0], *shape[2:]))
    good, weight = y.clone(), torch.rand(shape[1]) if weighted else None

    def losses_and_gradient():
        losses = functional.cross_entropy(x, y, weight, reduction="none")
        return losses.detach(), *torch.autograd.grad(losses.sum(), x)

    expected = F.cross_entropy(x, good, weight, reduction="none")
    gradient = torch.autograd.grad(expected.sum(), x)[0]
    for losses, found in while_written(y, [good, torch.full_like(y, BAD)], losses_and_gradient):
        hit = losses.isnan()
        torch.testing.assert_close(losses[~hit], expected.detach()[~hit])
        # The same rows of the gradient: NaN, or the right one.
        by_row, right = found.movedim(1, -1), gradient.movedim(1, -1)
        assert by_row[hit].isnan().all()
        torch.testing.assert_close(by_row[~hit], right[~hit])


@pytest.mark.parametrize("bad", [-1, -101, BAD, 2**62, -(2**63)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_of_all(bad, smoothing):
    """Of what a writer leaves behind at any moment, the loss is one that was there, or NaN."""
    x, y = torch.randn(512, 10), torch.randint(10, (512,))
    good = y.clone()
    weight = torch.rand(10)
    expected = F.cross_entropy(x, good, weight, reduction="sum", label_smoothing=smoothing)

    def loss():
        return functional.cross_entropy(x, y, weight, reduction="sum", label_smoothing=smoothing)

    for found in while_written(y, [good, torch.full_like(y, bad)], loss, seconds=0.2):
        assert found.isnan() or torch.isclose(found, expected)
