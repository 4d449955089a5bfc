"""What does the work of a TrainStep: the compiled half, or on CUDA the recordings."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ._chain import chain_of, structure_of
from ._chain_tensors import refusal
from ._graphed_step import GraphedCore
from ._load import _C
from ._recorded import Recorded
from ._runs import CODES
from ._step_group import Processes
from ._step_parts import hook_dicts, loss_call, loss_options, loss_spec, modules_of, rule_of

_RECORDED = ("cuda",)  # the devices whose steps are recorded: GraphedCore


class MadeOf(NamedTuple):
    """What a TrainStep was made of."""

    model: nn.Module
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    optimizer: Optimizer
    clip_grad_norm: float | None
    compute_dtype: torch.dtype | None


class Core(NamedTuple):
    """Good until the model's structure, the loss or the optimizer's methods change."""

    call: Callable[[Tensor, Tensor, bool], Any]  # (x, y, keep_grad): the loss, or a StepOutcome
    compiled: Any  # a _C.TrainStepCore; None where steps are recorded
    device: torch.device
    columns: int  # of the output


def make_core(
    made_of: MadeOf, processes: Processes | None, call_lock: Any, graph_lock: Any
) -> Core:
    """Reads the model's structure, the loss and the optimizer; ValueError for what cannot be run.

    call_lock, graph_lock: of the successive cores of a TrainStep, for one call at a time.
    """
    model, loss_fn, optimizer, clip_grad_norm, compute_dtype = made_of
    bf16 = compute_dtype is torch.bfloat16
    chain, spec = chain_of(model, bf16), loss_spec(loss_fn)
    if bf16 and any(p.dtype != torch.float32 for x in chain.layers for p in x.parameters()):
        raise refusal("", "compute_dtype=torch.bfloat16 is for parameters of float32")
    last = chain.layers[-1]
    if spec.kind == "bce" and (last.code != CODES["sigmoid"] or last.dropout is not None):
        raise refusal("", "binary_cross_entropy takes the output of a final sigmoid")
    rule = rule_of(optimizer, chain)
    structure, entries = structure_of(model)
    of_loss, entries_of_loss = loss_options(loss_fn)
    hooks = hook_dicts(model, optimizer, loss_fn)
    if chain.device.type in _RECORDED:
        graphed = GraphedCore(
            model,
            chain,
            loss_call(loss_fn),
            optimizer,
            clip_grad_norm,
            compute_dtype,
            hooks,
            Recorded(model, chain, loss_fn),
            processes=processes,
            lock=graph_lock,
        )
        return Core(graphed, None, chain.device, chain.columns)
    compiled = _C.TrainStepCore(
        [_C.LayerSpec(x.kind, x.path, x.module, x.code, x.dropout) for x in chain.layers],
        spec,
        optimizer,
        rule,
        float(clip_grad_norm or 0),
        bf16,
        chain.input_form,
        hooks,
        [*structure, *of_loss],
        [*entries, *entries_of_loss],
        # (One that no batch goes through may have a forward of its own.)
        [m for m in modules_of(model, loss_fn) if "forward" not in m.__dict__],
        call_lock,
        processes and processes.core(chain),
    )
    return Core(_C.fast_call(compiled), compiled, chain.device, chain.columns)
