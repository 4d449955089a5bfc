"""One run of a case: a plan's program, by PyTorch or by mlp_ext, and the log of what is seen."""

import contextlib
import copy
import gc
import io
import random
import warnings

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mlp_ext

from .losses import build_loss, make_target
from .models import build_model, lay_out, make_x
from .operations import OPERATIONS
from .optimizers import build_optimizer, build_scheduler
from .plan import DISTURBANCES
from .seen import changed, seen_of, snapshot

REFUSALS = (RuntimeError, ValueError, TypeError)  # what TrainStep may say instead of running
# Without the contexts that hold: what they patch cannot be copied in either library.
BARE = ("copy", "pickle", "save_load", "flops")


class World:
    """ours: by mlp_ext, and `theirs` is the log of PyTorch's run. nudge: (eps, seed) changes the
    parameters and inputs by that much, to learn how far rounding alone carries a program; widened:
    float64 stands for the other dtypes."""

    def __init__(self, plan, ours, theirs=(), nudge=None, widened=False):
        self.plan, self.ours, self.nudge = plan, ours, nudge
        self.log, self.index = [], 0
        self.failed_there = {index: value for index, label, value in theirs if label == "error"}
        self.widened = widened
        self.dtype, self.refusals = self._width(plan.dtype), []
        self.on_batch, self.mid, self.before_update, self.after_next = [], [], [], []
        self.contexts, self.keep = [], []
        self.keeps_flags = self.over = False
        self.model = self.loss_fn = self.optimizer = self.scheduler = self.step = None
        self.cyclic = None  # a weak reference to a model that refers to what trains it
        self._ends = contextlib.ExitStack()

    # ---- what disturbances use

    def note(self, label, value):
        self.log.append((self.index, label, value))

    def parameters(self):
        return list(self.model.parameters())

    def linears(self):
        return [m for m in self.model.modules() if hasattr(m, "in_features")]

    def at_end(self, function):
        self._ends.callback(function)

    def change_batch(self, function):
        self.on_batch.append(function)

    def _width(self, dtype):
        return torch.float64 if self.widened else dtype

    def convert(self, dtype, with_batches=True):
        dtype = self._width(dtype)
        self.model.to(dtype)
        if with_batches:
            self.dtype = dtype
            if isinstance(self.loss_fn, nn.Module):
                self.loss_fn.to(dtype)

    def batch(self, seed, rows=None):
        plan, generator = self.plan, torch.Generator().manual_seed(seed)
        spec = plan.batch if rows is None else {**plan.batch, "rows": rows}
        x = self.nudged(make_x(spec, plan.model, self.dtype, generator))
        shape = (*x.shape[: 1 if plan.model["flatten"] else -1], plan.model["sizes"][-1])
        y = make_target(plan.loss, shape, self.dtype, generator)
        x = lay_out(x, spec["layout"])
        # Equal rows, each by itself: what cancels among them exactly is rounding all the same.
        return self.nudged(x) if self.nudge and spec["layout"] == "expanded" else x, y

    def nudged(self, tensor):
        if self.nudge is None:
            return tensor
        eps, seed = self.nudge
        noise = torch.randn(
            tensor.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        return (tensor.double() * (1 + eps * noise)).to(tensor.dtype)

    # ---- the run

    def run(self):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        torch.manual_seed(self.plan.seed)
        try:
            with self._ends, mlp_ext.cpu.use_isa(self.plan.isa):
                if self._attempt(self._build):
                    self._operate()
        finally:
            torch.set_num_threads(threads)
            torch.set_grad_enabled(True)
        return self

    def is_gone(self):
        """Whether Python's collector frees a cyclic model, once nothing else refers to it."""
        self.model = self.loss_fn = self.optimizer = self.scheduler = self.step = None
        self.on_batch, self.mid, self.before_update, self.after_next = [], [], [], []
        self.contexts, self.keep = [], []
        gc.collect()
        return self.cyclic() is None

    def _operate(self):
        for index, (name, seed) in enumerate(self.plan.operations, 1):
            self.index = index
            if name in DISTURBANCES:
                ok = self._attempt(DISTURBANCES[name].act, self, random.Random(seed))
            else:
                ok = self._attempt(self._among_contexts, name, random.Random(seed))
                for function in self.after_next:
                    function()
                self.after_next = []
            if self.over or not ok:
                return

    def _among_contexts(self, name, r):
        with contextlib.ExitStack() as stack:
            for context in self.contexts if name not in BARE else ():
                if context[1] > 0:
                    stack.enter_context(context[0]())
                    context[1] -= 1
            OPERATIONS[name](self, r)
        if name in ("train", "forward"):
            with torch._C.DisableTorchFunctionSubclass():
                seen_of(self)

    def _attempt(self, function, *arguments):
        """Whether it ran; an exception is noted and ends the run."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                function(*arguments)
            except Exception as error:
                self.note("error", type(error))
                self.message = str(error)
                return False
        for one in caught if not self.over else ():
            self.note("warning", (one.category.__name__, str(one.message)[:40]))
        return True

    def _build(self):
        plan = self.plan
        self.model = build_model(plan.model, plan.form, self.ours).to(self.dtype)
        with torch.no_grad():
            for p in self.model.parameters():
                p.copy_(self.nudged(p))
        self.loss_fn = build_loss(plan.loss, self.ours and plan.own_loss, self.dtype)
        self.optimizer = build_optimizer(
            plan.optimizer, self.model.parameters(), self.ours and plan.own_optimizer
        )
        kind = plan.optimizer["scheduler"]
        before = plan.seed % 2
        self.scheduler = build_scheduler(kind, self.optimizer) if kind and before else None
        self.make_step()
        if kind and not before:
            self.scheduler = build_scheduler(kind, self.optimizer)

    def make_step(self):
        """Refused at construction: the loop, as a user would."""
        if not self.ours or self.plan.entry == "loop":
            return
        try:
            self.step = mlp_ext.TrainStep(
                self.model, self.loss_fn, self.optimizer, clip_grad_norm=self.plan.clip
            )
        except REFUSALS as error:
            self.step = None
            self.refusals.append(str(error))

    def train(self, x, y, r):
        for function in self.on_batch:
            result = function(x, y)
            x, y = result if isinstance(result, tuple) else (x, y)
        self.on_batch = []
        if self.step is not None:
            done, loss = self._stepped(lambda: self.step(x, y, keep_grad=self.plan.keep_grad))
            if done:
                return loss
        return self.loop(x, y, r)

    def _stepped(self, call):
        """(True, what call() gave), or (False, None) for a refusal that changed nothing."""
        before = snapshot(self)
        try:
            return True, call()
        except Exception as error:
            there = self.failed_there.get(self.index)
            if self.plan.entry == "epoch":  # its order has been drawn
                before.pop("generator")
            # An epoch that fails has done the batches before.
            if not (there and self.plan.entry == "epoch") and (
                what := changed(before, snapshot(self))
            ):
                self.note("changed by an error", what)
            if not isinstance(error, REFUSALS):
                raise
            if there:  # the loop fails as well, if perhaps elsewhere in its step
                raise there from error
            self.refusals.append(str(error))
            return False, None

    def loop(self, x, y, r):
        plan = self.plan
        if plan.entry == "loop" and plan.batch["x_grad"]:
            x = x.detach().requires_grad_()
        if plan.entry == "loop" and r.random() < 0.1 and "freed_state" not in plan.names():
            return self.optimizer.step(lambda: self._passes(x, y)).detach()
        loss = self._passes(x, y)
        if plan.clip is not None:
            own = self.ours and plan.own_loss
            clip = (mlp_ext.nn.utils if own else nn.utils).clip_grad_norm_
            norm = clip(self.model.parameters(), plan.clip)
            if plan.entry == "loop":
                self.note("norm", norm.clone())
        for function in self.before_update:
            function()
        self.before_update = []
        self.optimizer.step()
        if x.requires_grad and x.grad is not None:
            self.note("gradient of the input", x.grad.clone())
        return loss.detach()

    def _passes(self, x, y):
        output = self.model(x)
        if self.nudge and self.plan.loss["kind"] == "bce":  # 1 - p has few digits where p is near 1
            apart = self.nudged(output.detach()).clamp(0, 1) - output.detach()
            output = output + apart
        loss = self.loss_fn(output, y)
        loss = loss.sum() if loss.dim() else loss
        if self.plan.entry != "loop":  # TrainStep counts with this step's gradients alone
            for p in self.model.parameters():
                p.grad = None
        self.optimizer.zero_grad()
        loss.backward()
        for function in self.mid:
            function()
        self.mid = []
        return loss

    def epoch(self, seed, r):
        rows = max(self.plan.batch["rows"], 1)
        data = TensorDataset(*(t.detach() for t in self.batch(seed, 2 * rows + 1)))
        own, shuffle, last = r.random() < 0.7, r.random() < 0.5, r.random() < 0.5
        make = mlp_ext.data.DataLoader if self.ours and own else DataLoader
        loader = make(data, rows, shuffle=shuffle, drop_last=last)
        torch.manual_seed(seed)
        if self.step is not None:
            done, result = self._stepped(lambda: self.step.epoch(loader, batch_losses=True))
            if done:
                return result[1]
            torch.manual_seed(seed)
        losses = [self.loop(x, y, random.Random(1)) for x, y in loader]
        return torch.stack(losses) if losses else torch.empty(0)

    def copied(self, pickled):
        objects = [self.model, self.loss_fn, self.optimizer, self.scheduler, self.step]
        try:
            made = _copy(objects, pickled)
        except REFUSALS as error:
            if self.step is None:
                raise
            self.refusals.append(f"copy: {error}")  # what this step would refuse as well
            made = _copy([*objects[:4], None], pickled)
        self.model, self.loss_fn, self.optimizer, self.scheduler, self.step = made


def _copy(objects, pickled):
    if not pickled:
        return copy.deepcopy(objects)
    stream = io.BytesIO()
    torch.save(objects, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)
