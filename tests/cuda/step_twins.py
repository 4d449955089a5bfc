"""TrainStep on the device beside the loop that it stands for. On the CPU it is tried twice: as it
is, and by the way that it takes on CUDA."""

import pytest
from graphed_on_cpu import take_that_way
from on_device import DEVICE, IS_CUDA, to_device
from train_twins import Twins, draw


class DeviceTwins(Twins):
    """Twins whose batches are drawn on the CPU and moved."""

    def __init__(self, model, *arguments, **options):
        super().__init__(model.to(DEVICE), *arguments, **options)

    def run(self, kind, rows, sizes, steps):
        for _ in range(steps):
            self.both(*to_device(*draw(kind, rows, sizes, self.dtype)))


def batch(kind, rows, sizes, dtype):
    return to_device(*draw(kind, rows, sizes, dtype))


@pytest.fixture(autouse=True, params=["cuda"] if IS_CUDA else ["cpu", "graphed"])
def way(request, monkeypatch):
    """For the tests of a file that imports it."""
    if request.param == "graphed":
        take_that_way(monkeypatch)
