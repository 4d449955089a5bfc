"""TrainStep on the device beside the loop that it stands for."""

from on_device import DEVICE, to_device
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
