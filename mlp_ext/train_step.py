"""TrainStep: forward, loss, backward and update of one batch in a single compiled call."""

import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import Any, Literal, SupportsFloat, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ._load import _C
from ._step_batches import Run, on_device, pair_of
from ._step_core import Core, MadeOf, make_core
from ._step_group import Processes
from ._step_parts import initialize_state
from .data import DataLoader

__all__ = ["TrainStep"]

_DONE, _MISSING_STATE = 0, 1  # of StepOutcome in csrc/bindings/train_step.h
_MOST_CORES = 100  # that a call makes, if another thread changes the model meanwhile


class TrainStep:
    """A training step of `model` as one call: `loss = step(x, y)`.

    The same as

        loss = loss_fn(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip_grad_norm)  # unless None
        optimizer.step()

    on the model's own parameters and the optimizer's own state, without an autograd graph. Both
    may be used in any way between two calls: evaluated, saved, loaded, scheduled; learning rates
    and the other options are read from `optimizer.param_groups` at each call, and Dropout follows
    the `training` flag of its module. `.grad` is neither read nor written, unless keep_grad is set;
    parameters that the optimizer does not have count in the norm with this step's gradients (the
    loop's would pile up). Dropout draws from PyTorch's default generator, another stream than
    nn.Dropout's. Children of the model that are replaced, and options of the loss, are seen at the
    next call. A forward of your own is traced, and again when an attribute of its module that it
    may read has changed, or a list or dictionary in one; not for what it reads elsewhere (globals,
    the attributes of other objects).

    With a process_group, the model of the group's first process is copied to the others at
    construction. The loss returned is that of this process's batch; clipping and keep_grad are of
    the averages; every process counts the same, also with fewer rows. BatchNorm normalizes each
    process's batch by itself, and its running statistics stay that process's
    (DistributedDataParallel with broadcast_buffers=False). Every process makes the same calls in
    the same order. Which parameters require a gradient must not change. Where construction raises
    an exception in one process, it raises one in all.
    On the CPU a step does so too, and an epoch that has fewer batches in one process: all have then
    the parameters of the last step that all took. On CUDA they would have to wait for the GPU to
    hear of it: as under DistributedDataParallel, a process that fails in a step leaves the others
    to the group's timeout. It must not go on, as its next step would meet the one that they are at.
    Bad arguments and a changed model raise before the all-reduce, with nothing changed; a class
    index out of range is NaN there, and then in the parameters of all.

    On CUDA a step is a CUDA graph of forward, loss, backward and clipping with our ops, followed by
    optimizer.step(); with a process_group the all-reduce and the clipping come in between. It is
    recorded at the first batch of each shape, and again where other tensors have come, or what
    requires a gradient, `training` or an argument of a layer or of the loss has changed. The graphs
    of the 32 shapes that were used last are kept, in one pool of memory. x and y are on the model's
    device, the loss stays there, and nothing waits for the GPU (over NCCL). What a graph would not
    heed raises: hooks on parameters, modes, patches of torch, detect_anomaly, no_grad.

    Args:
        model: nn.Linear (or mlp_ext.nn.Linear), BatchNorm1d, LayerNorm, the activations of
            mlp_ext.functional.ACTIVATIONS, Dropout, Flatten and Identity, in nn.Sequential or in a
            module whose forward is a chain of them; parameters float32 or float64, frozen ones
            included.
        loss_fn: cross_entropy, mse_loss, l1_loss, huber_loss, smooth_l1_loss,
            binary_cross_entropy_with_logits, or binary_cross_entropy behind a final sigmoid: the
            module, the function, or a functools.partial of it; reduction "mean" or "sum".
        optimizer: one of mlp_ext.optim's classes, or torch.optim's class of that name.
        clip_grad_norm: the largest 2-norm of all gradients together; None for no clipping.
        compute_dtype: torch.bfloat16 rounds the operands and the results of each Linear's products
            to bfloat16, forward and backward, with sums in float32, as torch.autocast does;
            parameters, normalizations, loss and update stay float32. Where the CPU has no such
            products (see `python -m mlp_ext`: avx512_bf16), and for sums longer than 8192, the step
            is float32.
        process_group: average the gradients over the processes of this torch.distributed group, by
            one all-reduce a step: each calls the step on a batch of its own, and has the parameters
            that DistributedDataParallel would give. None: train alone.
            (torch.distributed.group.WORLD is None before init_process_group.)

    Raises:
        ValueError: at construction, with the submodule's path and the reason, for what cannot be
            run faithfully; for a process_group without this process, or whose processes have models
            of different shapes or dtypes; for a clip_grad_norm or compute_dtype that is none.
        TypeError: for a model that is no module, and a clip_grad_norm that is no number.
        RuntimeError: for a process_group before init_process_group.
    """

    _processes: Processes | None
    _core: Core | None
    _step: Callable[..., Any]

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        optimizer: Optimizer,
        *,
        clip_grad_norm: float | None = None,
        compute_dtype: torch.dtype | None = None,
        process_group: "torch.distributed.ProcessGroup | None" = None,
    ) -> None:
        self._hold(MadeOf(model, loss_fn, optimizer, clip_grad_norm, compute_dtype), process_group)
        if process_group is not None and (processes := Processes(process_group)).size > 1:
            self._processes = processes
            processes.start(model, self._start)
        else:
            self._start()

    def _hold(self, made_of: MadeOf, process_group: Any) -> None:
        self._made_of, self._process_group = made_of, process_group
        self._processes = self._core = None
        self._lock, self._call_lock = threading.Lock(), _C.StepLock()
        self._graph_lock = threading.RLock()

    def _start(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"TrainStep takes a torch.nn.Module, got {type(self.model).__name__}")
        clip, dtype = self.clip_grad_norm, self.compute_dtype
        if clip is not None and not isinstance(clip, SupportsFloat):
            raise TypeError(f"clip_grad_norm is a positive number or None, got {clip!r}")
        if clip is not None and not float(clip) > 0:
            raise ValueError(f"clip_grad_norm is a positive number or None, got {clip}")
        if dtype not in (None, torch.bfloat16):
            raise ValueError(f"compute_dtype is torch.bfloat16 or None, got {dtype}")
        self._make_core()

    # What the step was made of; for another one make another step.
    model = property(lambda self: self._made_of.model)
    loss_fn = property(lambda self: self._made_of.loss_fn)
    optimizer = property(lambda self: self._made_of.optimizer)
    clip_grad_norm = property(lambda self: self._made_of.clip_grad_norm)
    compute_dtype = property(lambda self: self._made_of.compute_dtype)
    process_group = property(lambda self: self._process_group)

    def __reduce__(self) -> tuple:
        """For copy.deepcopy and pickle: of model, loss and optimizer together."""
        if self.process_group is not None:
            raise TypeError("a TrainStep with a process_group cannot be copied: make another")
        return _blank, (type(self),), {"made_of": tuple(self._made_of)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The model may refer to this step, and is then a copy that is not finished yet: the first
        # call reads it.
        self._hold(MadeOf(*state["made_of"]), None)
        self._step = self._first_step

    def _first_step(self, x: Tensor, y: Tensor, keep_grad: bool) -> Any:
        self._make_core()
        return self._step(x, y, keep_grad)

    def _made(self) -> Core:
        if self._core is None:
            self._make_core()
        assert self._core is not None
        return self._core

    def _make_core(self) -> None:
        """Reads the model's structure and the loss; ValueError for what cannot be run."""
        self._core = make_core(self._made_of, self._processes, self._call_lock, self._graph_lock)
        together = self._processes and self._core.compiled
        self._step = self._step_together if together else self._core.call

    def __call__(self, x: Tensor, y: Tensor, *, keep_grad: bool = False) -> Tensor:
        """One step on a batch.

        Args:
            x: (batch, in_features), of the parameters' dtype and device; (..., in_features) for a
                model without BatchNorm1d, and without Flatten behind a Linear.
            y: what loss_fn takes for the output. Compiled are targets of the output's shape and
                dtype, and for cross_entropy class indices int64 or uint8 (batch,), or the
                probabilities of the classes. For others (float64, integers, what broadcasts,
                weights of another dtype) PyTorch's loss_fn is called between the compiled forward
                and backward passes, with its results, dtypes, warnings and errors.
            keep_grad: leave the (clipped) gradients in `.grad`.

        Returns:
            The loss, (), detached.

        Raises:
            RuntimeError: for what the loop would call and a step passes by: a hook registered on
                the model, a parameter, its AccumulateGrad node or the optimizer since construction;
                a function or class of torch that is patched; an active TorchFunctionMode,
                TorchDispatchMode, detect_anomaly or saved_tensors_hooks; under no_grad,
                inference_mode and autocast; for a call from within a call of the same step. And as
                PyTorch, for a shape or dtype that does not fit, freed memory, tensors of
                inference_mode, an x or y that requires a gradient. In all that is raised here
                nothing has been changed.
            IndexError: for a class index out of range.
            ValueError: if the model, the loss or the optimizer was changed to something that cannot
                be run; and as PyTorch's loss_fn.
            TypeError: for x or y that is no tensor, and an option of the optimizer that is no
                number.
        """
        loss = self._step(x, y, bool(keep_grad))
        return loss if type(loss) is not int else self._call_again(loss, x, y, bool(keep_grad))

    # Not in __call__, where a lambda's cells would cost each call 0.1 us.
    def _call_again(self, outcome: int, x: Tensor, y: Tensor, keep_grad: bool) -> Tensor:
        return self._after(outcome, lambda: self._step(x, y, keep_grad))

    def _step_together(self, x: Tensor, y: Tensor, keep_grad: bool) -> Tensor:
        """The whole call, so that whatever keeps this process from the step is told the others."""
        assert self._processes is not None
        with self._processes.step():
            loss = self._made().call(x, y, keep_grad)
            return self._after(loss, lambda: self._made().call(x, y, keep_grad))

    def _after(self, outcome: int, again: Callable[[], Any]) -> Any:
        """What again() gives once what was left to Python is done (StepOutcome in csrc)."""
        has_states, cores = False, 0
        while type(outcome) is int and outcome != _DONE:
            # Twice in a row: an epoch may come upon a new parameter in the middle.
            if outcome == _MISSING_STATE and has_states:
                self._made().compiled.refuse_incomplete()
                raise RuntimeError("TrainStep: a state of the optimizer is incomplete or no tensor")
            with self._lock:
                if outcome == _MISSING_STATE:
                    initialize_state(self.optimizer)
                    has_states = True
                elif cores < _MOST_CORES:
                    self._make_core()
                    cores += 1
                else:
                    raise RuntimeError("TrainStep: the model changes each time that it is read")
            outcome = again()
        return outcome

    @overload
    def epoch(self, loader: Iterable[Any], *, batch_losses: Literal[False] = False) -> float: ...
    @overload
    def epoch(
        self, loader: Iterable[Any], *, batch_losses: Literal[True]
    ) -> tuple[float, Tensor]: ...
    def epoch(
        self, loader: Iterable[Any], *, batch_losses: bool = False
    ) -> float | tuple[float, Tensor]:
        """One step for each batch (x, y) of `loader`.

        The same steps as `for x, y in loader: step(x, y)`. Where the loader is an
        mlp_ext.data.DataLoader that gathers (see there), over a TensorDataset of two tensors, the
        whole pass is compiled code: changes of the model and of the optimizer's options are then
        seen at its beginning and every 20 ms, and that is also how soon Ctrl-C stops it and calls
        of other threads are let in, after a whole step. An exception leaves the model as after the
        last whole step. Batches for a model on CUDA may be on the CPU.

        With a process_group the losses are those of this process's batches, and the processes must
        have as many batches each. On the CPU they meet once more at the end; on CUDA they compare
        len(loader) at the beginning, and are left to the group's timeout if loaders without one, or
        with a wrong one, differ.

        Args:
            loader: gives batches (x, y), as the step takes them.
            batch_losses: return the loss of each batch as well.

        Returns:
            The mean of the losses, a float, NaN for a loader without batches; with batch_losses
            (mean, losses), the losses as a tensor (batches,).

        Raises:
            TypeError, ValueError: for a batch that is no pair of features and targets.
            RuntimeError: on CUDA with a process_group, if the lengths of the loaders differ; and
                what a step raises.
        """
        losses = self._losses_of_epoch(loader)
        mean = losses.double().mean().item()
        return (mean, losses) if batch_losses else mean

    def _losses_of_epoch(self, loader: Iterable[Any]) -> Tensor:
        core = self._made()
        if core.compiled is None:
            if self._processes:
                self._processes.expect_one_length(loader)
            return self._stepped_epoch(on_device(loader, core.device))
        with self._processes.epoch() if self._processes else contextlib.nullcontext():
            if type(loader) is DataLoader and loader.gathers and len(loader.dataset.tensors) == 2:
                x, y = loader.dataset.tensors
                if core.compiled.takes_epoch(x, y, core.columns):
                    return self._gathered_epoch(loader, x.detach(), y.detach())
            return self._stepped_epoch(loader)

    def _stepped_epoch(self, loader: Iterable[Any]) -> Tensor:
        steps = [self(*pair_of(batch)) for batch in loader]
        return torch.stack(steps) if steps else torch.empty(0)

    def _gathered_epoch(self, loader: DataLoader, x: Tensor, y: Tensor) -> Tensor:
        losses = torch.empty(len(loader), dtype=x.dtype, device="cpu")
        done = 0
        for index, size in loader.index_runs():
            batches = losses[done : done + len(index) // size]
            run = Run(self, x, y, index, size, batches)
            self._after(run(), run)
            done += len(batches)
        return losses


def _blank(kind: type[TrainStep]) -> TrainStep:
    """For copy and pickle, before its state is set."""
    return kind.__new__(kind)
