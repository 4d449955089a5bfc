"""The losses of mlp_ext.nn: torch.nn's modules, each by the function of mlp_ext.functional.

Arguments, buffers, shapes, results and errors are those of the torch class, whose forward runs for
tensors of a subclass, and while something may want to see it (see mlp_ext.nn.Sequential).
"""

from typing import Any

from torch import Tensor, nn
from torch.compiler import is_compiling

from . import functional
from ._surroundings import LOSSES, as_usual, watch_class


def _buffer(module: nn.Module, name: str) -> Any:
    """getattr(module, name), without the 0.4 us of Module.__getattr__ for a buffer."""
    try:
        return module._buffers[name]
    except KeyError:
        return getattr(module, name)


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """nn.CrossEntropyLoss by mlp_ext.functional.cross_entropy.

    Constructor and attributes are those of torch.nn.CrossEntropyLoss. input (N, C, d1, ...), (N, C)
    or (C,); target class indices int64, or probabilities of input's shape and dtype. Returns (), or
    one loss an element (a row) for reduction="none". Errors are those of the function.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of input and target: see the class."""
        weight = _buffer(self, "weight")
        if not (is_compiling() or as_usual(LOSSES, input, target, weight)):
            return super().forward(input, target)
        return functional.cross_entropy(
            input,
            target,
            weight=weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class BCEWithLogitsLoss(nn.BCEWithLogitsLoss):
    """nn.BCEWithLogitsLoss by mlp_ext.functional.binary_cross_entropy_with_logits.

    Constructor and attributes are those of torch.nn.BCEWithLogitsLoss. input of any shape; target
    of the same shape and dtype, from 0 to 1. Returns (), or one loss an element (a row) for
    reduction="none". Errors are those of the function.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of input and target: see the class."""
        weight, pos_weight = _buffer(self, "weight"), _buffer(self, "pos_weight")
        if not (is_compiling() or as_usual(LOSSES, input, target, weight, pos_weight)):
            return super().forward(input, target)
        return functional.binary_cross_entropy_with_logits(
            input, target, weight, pos_weight=pos_weight, reduction=self.reduction
        )


class MSELoss(nn.MSELoss):
    """nn.MSELoss by mlp_ext.functional.mse_loss.

    Constructor and attributes are those of torch.nn.MSELoss. input of any shape; target of the same
    shape and dtype. Returns (), or one loss an element (a row) for reduction="none". Errors are
    those of the function.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of input and target: see the class."""
        if not (is_compiling() or as_usual(LOSSES, input, target)):
            return super().forward(input, target)
        return functional.mse_loss(input, target, reduction=self.reduction)


class L1Loss(nn.L1Loss):
    """nn.L1Loss by mlp_ext.functional.l1_loss.

    Constructor and attributes are those of torch.nn.L1Loss. input of any shape; target of the same
    shape and dtype. Returns (), or one loss an element (a row) for reduction="none". Errors are
    those of the function.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of input and target: see the class."""
        if not (is_compiling() or as_usual(LOSSES, input, target)):
            return super().forward(input, target)
        return functional.l1_loss(input, target, reduction=self.reduction)


class HuberLoss(nn.HuberLoss):
    """nn.HuberLoss by mlp_ext.functional.huber_loss.

    Constructor and attributes are those of torch.nn.HuberLoss. input of any shape; target of the
    same shape and dtype. Returns (), or one loss an element (a row) for reduction="none". Errors
    are those of the function.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of input and target: see the class."""
        if not (is_compiling() or as_usual(LOSSES, input, target)):
            return super().forward(input, target)
        return functional.huber_loss(input, target, reduction=self.reduction, delta=self.delta)


class SmoothL1Loss(nn.SmoothL1Loss):
    """nn.SmoothL1Loss by mlp_ext.functional.smooth_l1_loss.

    Constructor and attributes are those of torch.nn.SmoothL1Loss. input of any shape; target of the
    same shape and dtype. Returns (), or one loss an element (a row) for reduction="none". Errors
    are those of the function.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of input and target: see the class."""
        if not (is_compiling() or as_usual(LOSSES, input, target)):
            return super().forward(input, target)
        return functional.smooth_l1_loss(input, target, reduction=self.reduction, beta=self.beta)


for _loss in (CrossEntropyLoss, BCEWithLogitsLoss, MSELoss, L1Loss, HuberLoss, SmoothL1Loss):
    watch_class(LOSSES, _loss)
    _loss.__module__ = "mlp_ext.nn"  # pickles name a class by the module in which users find it
del _loss
