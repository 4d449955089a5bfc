"""What mlp_ext.explain says of the activation behind a Linear of a stack."""

import torch

from . import nn
from ._runs import FORMS, HOOK_KINDS, NO_ACTIVATION, code_of

# What is reported on.
LinearLike = torch.nn.Linear | nn.LinearActivation


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def activation_after(members: list[tuple[str, torch.nn.Module]], path: str) -> str:
    """' with 0.1 (ReLU)' for the activation that follows a Linear in its stack, if one does."""
    for name, child in members:
        if isinstance(child, LinearLike):
            break
        if not isinstance(child, torch.nn.Identity | torch.nn.Dropout):
            return f" with {join(path, name)} ({type(child).__name__})"
    return ""


def alone(following: list[tuple[str, torch.nn.Module]], path: str) -> str:
    """That the activation behind a stack, if there is one, runs by itself, and why."""
    name, child = following[0] if following else ("", None)
    base = next((form.module for form in FORMS.values() if isinstance(child, form.module)), None)
    if child is None or base is None:
        return ""
    if type(child) is not base:
        why = f"a subclass of {base.__name__}"
    elif "forward" in child.__dict__:
        why = "which has a forward of its own"
    elif any(getattr(child, f"_{kind}_hooks") for kind in HOOK_KINDS):
        why = "which has a hook"
    elif code_of(child) == NO_ACTIVATION:
        why = "whose arguments are not the default ones"
    else:
        return ""
    return f"; {join(path, name)} ({type(child).__name__}), {why}, runs by itself"
