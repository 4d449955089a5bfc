"""TrainStep on CUDA: forward, loss, backward and clipping recorded as a CUDA graph, one for each
shape of a batch, and replayed at each call; the optimizer's own step follows. With a process group
the recording ends with the gradients in one buffer; the all-reduce and the clipping follow it.

The update stays outside of the graph, whose numbers are fixed: learning rates, step counts and
states are then the optimizer's, as in any loop, for the price of one launch.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import reference
from ._chain import Chain, Layer
from ._load import _C
from ._recorded import Recorded
from ._runs import CODES, NO_ACTIVATION
from ._step_group import Processes
from ._step_parts import put_back_gradient
from ._surroundings import LAYERS, LOSSES
from .nn.utils import clip_grad_norm_

_NAMES = {code: name for name, code in CODES.items()}
# Each holds the memory of a step. The one that was not used for longest makes place for a new one.
MOST_RECORDINGS = 32
OTHER_MODEL = 2  # StepOutcome::kOtherModel of csrc/bindings/train_step.h

# (work, pool) -> what work() returned, a function that does it again with the same tensors, and the
# pool that their memory is in: the one that was given, unless that was None.
Record = Callable[[Callable[[], Any], Any], tuple[Any, Callable[[], None], Any]]


# One recording at a time: its beginning waits for the device, which breaks another's.
_recording = threading.Lock()
# By default all graphs are recorded on one stream, of the first one's device: work on another
# device would not be recorded at all. A stream for each device, and no more: the allocator gives
# memory of a pool only to the stream that it was first given to.
_streams: dict[int, torch.cuda.Stream] = {}


def record_cuda_graph(
    work: Callable[[], Any], pool: Any = None
) -> tuple[Any, Callable[[], None], Any]:
    """Record for CUDA graphs, on the current device. `work` runs twice: what it makes at first use
    (cuBLAS's handles, workspaces) is made outside of the graph."""
    with _recording:
        device = torch.cuda.current_device()
        if device not in _streams:
            _streams[device] = torch.cuda.Stream()
        stream = _streams[device]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: another thread may allocate memory meanwhile (a DataLoader's that pins
        # batches).
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            result = work()
    return result, graph.replay, graph.pool()


class _Recording:
    """The step on batches of one shape, up to its gradients."""

    def __init__(
        self, core: "GraphedCore", x: Tensor, y: Tensor, record: Record, pool: Any
    ) -> None:
        self.x, self.y = x.detach().clone(), y.detach().clone()
        with _unchanged(core.model, x.device):
            result, self._replay, self.pool = record(lambda: core.gradients(self.x, self.y), pool)
        self.loss, self.grads = result

    def run(self, x: Tensor, y: Tensor) -> None:
        self.x.copy_(x)
        self.y.copy_(y)
        self._replay()


@contextlib.contextmanager
def _unchanged(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Recording runs the model; its buffers (running statistics) and the generator must not have
    seen that."""
    kept = [(b, b.detach().clone()) for b in model.buffers()]
    generator = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
        if device.type == "cuda":
            torch.cuda.set_rng_state(generator, device)
        else:
            torch.set_rng_state(generator)


class GraphedCore:
    """A call is a step: core(x, y, keep_grad) returns the loss, or OTHER_MODEL where another core
    is needed because something that the recordings hold has changed."""

    def __init__(
        self,
        model: nn.Module,
        chain: Chain,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: Optimizer,
        clip_grad_norm: float | None,
        compute_dtype: torch.dtype | None,
        hooks: list[dict],
        recorded: Recorded,
        record: Record = record_cuda_graph,
        processes: Processes | None = None,
        lock: Any = None,
    ) -> None:
        """recorded: of the model, the chain and the loss. lock: of this core and those that follow
        it; reentrant, taken for each call."""
        self.model, self._chain, self._loss, self._optimizer = model, chain, loss, optimizer
        self._clip_grad_norm = None if clip_grad_norm is None else float(clip_grad_norm)
        self._compute_dtype = compute_dtype
        self._hooks, self._recorded, self._record = hooks, recorded, record
        # Not of children that no batch goes through: they have no gradient.
        params = [p for layer in chain.layers for p in layer.parameters()]
        self._params = [p for p in params if p.requires_grad]
        self._device = chain.device
        self._forward = _forward_of(chain)
        self._shared = None if processes is None else processes.shared_gradients(params)
        self._recordings: dict[tuple, _Recording] = {}
        self._lock = threading.RLock() if lock is None else lock

    def __call__(self, x: Tensor, y: Tensor, keep_grad: bool) -> Tensor | int:
        with self._lock:  # the buffers of a recording, and .grad, are one call's at a time
            return self._call(x, y, keep_grad)

    def _call(self, x: Tensor, y: Tensor, keep_grad: bool) -> Tensor | int:
        if any(self._hooks):
            raise RuntimeError(
                "a hook was registered on the model or the optimizer after this TrainStep was "
                "made, and would not run: remove it, or go back to the training loop"
            )
        if not self._recorded.unchanged():
            return OTHER_MODEL
        if (hook := _C.hook_on(self._params, self._shared is not None)) is not None:
            raise RuntimeError(
                f"{hook} of a parameter would not run: remove it, or go back to the training loop"
            )
        self._check(x, y)
        # get_float32_matmul_precision() raises once this was set by itself, and adds nothing to it.
        precision = torch.backends.cuda.matmul.fp32_precision
        key = (x.shape, x.dtype, y.shape, y.dtype, precision)
        with torch.cuda.device_of(x), torch.no_grad():
            recording = self._recordings.pop(key, None)
            if recording is None:
                if len(self._recordings) >= MOST_RECORDINGS:
                    del self._recordings[next(iter(self._recordings))]
                recording = self._recorded_on(x, y)
            self._recordings[key] = recording  # the last, as the latest used
            recording.run(x, y)
            if self._shared is not None:
                self._shared.add_up()
                self._clip([self._shared.flat])
            self._update(recording.grads, keep_grad)
            return recording.loss.clone()

    def _recorded_on(self, x: Tensor, y: Tensor) -> _Recording:
        """The recordings share one pool of memory, that of one which lives: the allocator takes no
        pool back into use that no graph is left of.

        What a recording frees while it is made is given to the next, whose replays write there. So
        what a replay leaves is good until the next replay of any of them; loss and gradients are
        used up before that, under the lock, in the order of the streams that the parameters need
        as well. They belong to their recording while it lives, so that no later one is given their
        place. Inputs, model and the buffer of a process group are not in the pool. Two TrainSteps
        share none: nothing orders their calls.
        """
        pools = (r.pool for r in self._recordings.values() if r.pool is not None)
        try:
            return _Recording(self, x, y, self._record, next(pools, None))
        except BaseException:
            # A recording that was broken off may leave its pool marked as being recorded to.
            for recording in self._recordings.values():
                recording.pool = None
            raise

    def gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The loss, and the (clipped) gradients of the parameters that require one; with a group
        this process's part of their averages."""
        low = self._compute_dtype
        with torch.enable_grad():
            with torch.autocast(self._device.type, low, enabled=low is not None):
                loss = self._loss(self._forward(x), y)
            grads = list(torch.autograd.grad(loss, self._params))
        if self._shared is None:
            self._clip(grads)
            return loss.detach(), grads
        self._shared.put(grads)
        return loss.detach(), self._shared.views

    def _clip(self, grads: list[Tensor]) -> None:
        if self._clip_grad_norm is not None:
            carriers = [grad.detach() for grad in grads]
            for carrier, grad in zip(carriers, grads, strict=True):
                carrier.grad = grad
            clip_grad_norm_(carriers, self._clip_grad_norm)

    def _update(self, grads: list[Tensor], keep_grad: bool) -> None:
        before = [p.grad for p in self._params]
        kept: list[Tensor | None] = [g.clone() for g in grads] if keep_grad else before
        ours = {id(p) for p in self._params}
        others = (p for g in self._optimizer.param_groups for p in g["params"])
        strays = [(p, p.grad) for p in others if p.grad is not None and id(p) not in ours]
        try:
            # Old gradients, of frozen parameters and of those that are not of the model any more,
            # are not this step's.
            for p, _ in strays:
                p.grad = None
            for p, grad in zip(self._params, grads, strict=True):
                p.grad = grad
            self._optimizer.step()
        finally:
            for p, old in (*zip(self._params, kept, strict=True), *strays):
                put_back_gradient(p, old)

    def _check(self, x: Tensor, y: Tensor) -> None:
        if torch.is_inference_mode_enabled() or torch.is_autocast_enabled(self._device.type):
            raise RuntimeError(
                "TrainStep does not run under inference_mode or autocast; "
                "compute_dtype=torch.bfloat16 makes its products bfloat16"
            )
        if not torch.is_grad_enabled():
            raise RuntimeError(
                "TrainStep got a call under no_grad, where the loop's loss.backward() fails"
            )
        for name, is_on in (
            ("detect_anomaly", torch.is_anomaly_enabled()),
            ("saved_tensors_hooks", torch._C._autograd._top_saved_tensors_default_hooks(False)),
        ):
            if is_on:
                raise RuntimeError(
                    f"TrainStep does not run under {name}, which would not see what a CUDA graph "
                    "does again: use the loop"
                )
        if not _C.as_usual(LAYERS | LOSSES):
            raise RuntimeError(
                f"TrainStep does not run while {_C.what_is_unusual(LAYERS | LOSSES)}: use the loop"
            )
        for t, what in ((x, "an input"), (y, "a target")):
            if t.device != self._device or t.layout != torch.strided:
                raise RuntimeError(
                    f"TrainStep got {what} on {t.device}; expected a dense tensor on "
                    f"{self._device}, where the model is"
                )
            if type(t) not in (Tensor, nn.Parameter):
                raise RuntimeError(
                    f"TrainStep got a {type(t).__name__}, no ordinary tensor: a subclass of Tensor "
                    "would see none of PyTorch's functions; use the loop, or "
                    "as_subclass(torch.Tensor)"
                )
            if t.requires_grad:
                raise RuntimeError(
                    f"TrainStep got {what} that requires a gradient, which it does not give: "
                    "detach it, or use the loop"
                )
            if t.is_inference():
                raise RuntimeError(
                    f"TrainStep got {what} that was made under inference_mode: inference tensors "
                    "cannot be saved for backward, clone it outside"
                )
        if x.dtype != self._params[0].dtype:
            raise RuntimeError(
                f"TrainStep got an input of dtype {x.dtype}, but the parameters are "
                f"{self._params[0].dtype}; they must be the same"
            )
        _C.refuse_freed([x, y])
        if x.numel() == 0:
            raise ValueError(f"TrainStep got an empty batch: shape {tuple(x.shape)}")


def _forward_of(chain: Chain) -> Callable[[Tensor], Tensor]:
    """The chain with each run of Linear as one op."""
    parts: list[Callable[[Tensor], Tensor]] = []
    run: list[Layer] = []
    for layer in chain.layers:
        if layer.kind == "linear":
            run.append(layer)
        if run and (layer.kind != "linear" or layer.dropout is not None):
            parts.append(_stack(run))
            run = []
        if layer.kind != "linear":
            if layer.module is not None:
                parts.append(layer.module)
            if layer.code != NO_ACTIVATION:
                parts.append(partial(reference.activate, activation=_NAMES[layer.code]))
        if layer.dropout is not None:
            parts.append(layer.dropout)
    if run:
        parts.append(_stack(run))

    def forward(x: Tensor) -> Tensor:
        x = x.flatten(1) if chain.flattens and x.dim() > 2 else x
        for part in parts:
            x = part(x)
        return x

    return forward


def _stack(layers: list[Layer]) -> Callable[[Tensor], Tensor]:
    modules: list[Any] = [layer.module for layer in layers]
    codes = [layer.code for layer in layers]
    weights, biases = [m.weight for m in modules], [m.bias for m in modules]
    return lambda x: _C.mlp(x, weights, biases, codes)
