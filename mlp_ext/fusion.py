"""fuse, unfuse, explain: switch a whole model over, switch it back, and see what came of it.

`fuse` changes the class of containers and nothing else: modules, keys, hooks and flags stay. It
takes the nn.Sequential only. A Linear that a module calls in a forward of its own
(`F.relu(self.fc1(x))`) is left alone: its activation is a line of Python, and a graph recorded once
(torch.fx) would miss what that line does the next time: another branch, another hook, another
child. Put such a layer and its activation into an nn.Sequential, and fuse takes them.
"""

from typing import TypeVar

import torch

from . import nn
from ._explain import LINEARS, Explanation, LinearReport, check_module, explain

__all__ = ["Explanation", "LinearReport", "explain", "fuse", "unfuse"]

_Model = TypeVar("_Model", bound=torch.nn.Module)


def fuse(model: _Model) -> _Model:
    """Make every nn.Sequential of `model` that holds a Linear an mlp_ext.nn.Sequential, in place.

    Parameters, state_dict keys, hooks, indices and the modules themselves stay as they are, so
    optimizers and checkpoints go on; calling it again changes nothing. Subclasses of nn.Sequential
    keep their class, and with it their forward. What then runs fused is decided at each call (see
    mlp_ext.nn.Sequential) and told by `explain`.

    Args:
        model: any module, also an nn.Sequential itself.

    Returns:
        `model`.

    Raises:
        TypeError: if `model` is no module.
    """
    check_module(model, "fuse")
    for module in model.modules():
        if type(module) is torch.nn.Sequential and any(type(c) in LINEARS for c in module):
            module.__class__ = nn.Sequential
    return model


def unfuse(model: _Model) -> _Model:
    """Make every mlp_ext.nn.Sequential of `model` an nn.Sequential again, in place.

    Also those that were built as mlp_ext.nn.Sequential. An MLP, an mlp_ext.nn.Linear and a
    LinearActivation are classes that the user chose for what they do, and stay.

    Args:
        model: any module.

    Returns:
        `model`.

    Raises:
        TypeError: if `model` is no module.
    """
    check_module(model, "unfuse")
    for module in model.modules():
        if type(module) is nn.Sequential:
            module.__class__ = torch.nn.Sequential
    return model
