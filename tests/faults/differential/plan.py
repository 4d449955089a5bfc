"""Draws a case from its seed: everything that both runs of it share."""

import random
from dataclasses import dataclass, field

import torch

import mlp_ext

from . import contexts, meanwhile, memory, options, surgery, tensors
from .losses import draw_loss
from .models import draw_batch, draw_model
from .optimizers import draw_optimizer

DISTURBANCES = {
    name: one
    for module in (memory, tensors, options, surgery, contexts, meanwhile)
    for name, one in module.DISTURBANCES.items()
}
OTHERS = ("evaluate", "forward", "save_load", "copy", "pickle", "options", "double_backward")
OTHERS += ("functional_call", "stale_backward", "pause", "flops")
OTHERS += ("second_update", "zeroed", "checkpointed", "vmapped")


@dataclass
class Plan:
    seed: int
    entry: str  # "loop", "step", "epoch"
    form: str  # how the model uses mlp_ext: see models.build_model
    dtype: torch.dtype
    model: dict
    batch: dict
    loss: dict
    optimizer: dict
    own_loss: bool
    own_optimizer: bool
    clip: float | None
    keep_grad: bool
    isa: str
    operations: list = field(default_factory=list)  # (name, seed of the operation)

    def names(self):
        return [name for name, _ in self.operations]

    def name(self, index):
        """The disturbances before operation `index`."""
        found = {name for name, _ in self.operations[:index] if name in DISTURBANCES}
        return "+".join(sorted(found)) or "-"

    def __str__(self):
        lines = [f"case {self.seed}: {self.entry}, {self.form}, {self.dtype}, {self.isa}"]
        lines += [f"  {name:9} {getattr(self, name)}" for name in ("model", "batch", "loss")]
        own = f"own loss {self.own_loss}, own optimizer {self.own_optimizer}"
        lines += [f"  {'optimizer':9} {self.optimizer}", f"  {own}, clip {self.clip}"]
        lines += [f"  operations {', '.join(self.names())}"]
        return "\n".join(lines)


def draw(seed):
    r = random.Random(seed)
    entry = r.choice(("loop",) * 5 + ("step",) * 4 + ("epoch",))
    forms = ("fuse",) * 5 + ("own", "own", "merged", "functional", "mlp", "MLP")
    form = r.choice(forms if entry == "loop" else ("plain",) * 4 + ("fuse", "own", "merged", "MLP"))
    dtype = r.choice((torch.float32,) * 5 + (torch.float64,) * 2 + (torch.bfloat16,))
    if entry != "loop" and dtype == torch.bfloat16 and r.random() < 0.8:
        dtype = torch.float32
    model = draw_model(r, form)
    loss = draw_loss(r, model, entry)
    plan = Plan(
        seed=seed,
        entry=entry,
        form=form,
        dtype=dtype,
        model=model,
        batch=draw_batch(r, model, entry),
        loss=loss,
        optimizer=draw_optimizer(r),
        own_loss=r.random() < 0.6,
        own_optimizer=r.random() < 0.6,
        clip=r.choice((None,) * 4 + (0.1, 1e3)),
        keep_grad=r.random() < 0.3,
        isa=r.choice([*mlp_ext.cpu.supported_isas(), *[mlp_ext.cpu.supported_isas()[-1]] * 6]),
    )
    if entry != "loop":  # TrainStep's Dropout draws another stream
        model["body"] = [("dropout0",) if item == ("dropout",) else item for item in model["body"]]
    plan.operations = _operations(r, plan)
    return plan


def _operations(r, plan):
    names = ["train"] * r.choice((2, 2, 3, 4))
    for _ in range(r.choice((0, 0, 1, 1, 2))):
        names.insert(r.randrange(len(names) + 1), r.choice(OTHERS))
    if r.random() < 0.25:
        names.insert(r.randrange(len(names) + 1), "options")
    fitting = [name for name, one in DISTURBANCES.items() if one.fits(plan)]
    for _ in range(r.choice((0, 1, 1, 1, 2, 3))):
        name = r.choice(fitting)
        if DISTURBANCES[name].alone:
            names = ["train", name, "train"]
            break
        last = max(i for i, name in enumerate(names) if name == "train")
        names.insert(r.randrange(last + 1), name)
    return [(name, r.randrange(1 << 30)) for name in names]
