"""The losses of mlp_ext.nn: torch.nn's modules, each by the function of mlp_ext.functional.

Arguments, buffers, shapes, results and errors are those of the torch class.
"""

from torch import Tensor, nn

from . import functional
from ._surroundings import LOSSES, watch_class


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """nn.CrossEntropyLoss by mlp_ext.functional.cross_entropy.

    Constructor and attributes are those of torch.nn.CrossEntropyLoss. input (N, C, d1, ...), (N, C)
    or (C,); target class indices int64, or probabilities of input's shape and dtype. Returns (), or
    one loss an element (a row) for reduction="none". Errors are those of the function.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of input and target: see the class."""
        return functional.cross_entropy(
            input,
            target,
            weight=self.weight,
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
        return functional.binary_cross_entropy_with_logits(
            input, target, self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )


class MSELoss(nn.MSELoss):
    """nn.MSELoss by mlp_ext.functional.mse_loss.

    Constructor and attributes are those of torch.nn.MSELoss. input of any shape; target of the same
    shape and dtype. Returns (), or one loss an element (a row) for reduction="none". Errors are
    those of the function.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of input and target: see the class."""
        return functional.mse_loss(input, target, reduction=self.reduction)


class L1Loss(nn.L1Loss):
    """nn.L1Loss by mlp_ext.functional.l1_loss.

    Constructor and attributes are those of torch.nn.L1Loss. input of any shape; target of the same
    shape and dtype. Returns (), or one loss an element (a row) for reduction="none". Errors are
    those of the function.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of input and target: see the class."""
        return functional.l1_loss(input, target, reduction=self.reduction)


class HuberLoss(nn.HuberLoss):
    """nn.HuberLoss by mlp_ext.functional.huber_loss.

    Constructor and attributes are those of torch.nn.HuberLoss. input of any shape; target of the
    same shape and dtype. Returns (), or one loss an element (a row) for reduction="none". Errors
    are those of the function.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of input and target: see the class."""
        return functional.huber_loss(input, target, reduction=self.reduction, delta=self.delta)


class SmoothL1Loss(nn.SmoothL1Loss):
    """nn.SmoothL1Loss by mlp_ext.functional.smooth_l1_loss.

    Constructor and attributes are those of torch.nn.SmoothL1Loss. input of any shape; target of the
    same shape and dtype. Returns (), or one loss an element (a row) for reduction="none". Errors
    are those of the function.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of input and target: see the class."""
        return functional.smooth_l1_loss(input, target, reduction=self.reduction, beta=self.beta)


for _loss in (CrossEntropyLoss, BCEWithLogitsLoss, MSELoss, L1Loss, HuberLoss, SmoothL1Loss):
    watch_class(LOSSES, _loss)
    _loss.__module__ = "mlp_ext.nn"  # pickles name a class by the module in which users find it
del _loss
