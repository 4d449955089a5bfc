"""TrainStep's losses with their options against torch's; then nets, losses, optimizers and batch
sizes drawn at random."""

import copy
import functools
import random

import pytest
import torch
import torch.nn.functional as F
from cases import KINKED, dtypes
from torch import nn
from train_twins import ROWS as TWO_THREADS
from train_twins import Twins, assert_same, draw, make, net, snapshot
from twins import ACTIVATION_MODULES

import mlp_ext
from mlp_ext import TrainStep

SIZES = (6, 9, 5)
ROWS = 7
WEIGHT = torch.tensor([0.5, 2.0, 1.5, 0.25, 3.0], dtype=torch.float64)
PER_ELEMENT = torch.linspace(0.2, 2.0, ROWS * 5, dtype=torch.float64).view(ROWS, 5)
part = functools.partial

LOSSES = {
    "classes": {
        "module": nn.CrossEntropyLoss(),
        "own_module": mlp_ext.nn.CrossEntropyLoss(WEIGHT, reduction="sum"),
        "function": F.cross_entropy,
        "own_function": mlp_ext.functional.cross_entropy,
        "weight": nn.CrossEntropyLoss(WEIGHT),
        "weight-sum": nn.CrossEntropyLoss(WEIGHT, reduction="sum"),
        "ignore": nn.CrossEntropyLoss(ignore_index=2),
        "smooth": part(F.cross_entropy, label_smoothing=0.2),
        "smooth-1": part(F.cross_entropy, label_smoothing=1.0),
        "smooth-sum": nn.CrossEntropyLoss(label_smoothing=0.2, reduction="sum"),
        "all": nn.CrossEntropyLoss(WEIGHT, ignore_index=1, label_smoothing=0.1),
        "all-sum": part(
            F.cross_entropy, weight=WEIGHT, ignore_index=1, label_smoothing=0.1, reduction="sum"
        ),
        "partial of partial": part(
            part(F.cross_entropy, ignore_index=4, label_smoothing=0.5), label_smoothing=0.1
        ),
    },
    "values": {
        "mse": nn.MSELoss(),
        "mse-sum": part(F.mse_loss, reduction="sum"),
        "mse-function": F.mse_loss,
        "mse-weight-sum": part(F.mse_loss, weight=PER_ELEMENT, reduction="sum"),
        "mse-weight": part(F.mse_loss, weight=PER_ELEMENT),
        "l1": nn.L1Loss(),
        "l1-sum": nn.L1Loss(reduction="sum"),
        "l1-function": F.l1_loss,
        "l1-weight": part(F.l1_loss, weight=PER_ELEMENT),
        "huber": nn.HuberLoss(),
        "huber-delta": nn.HuberLoss(delta=0.3),
        "huber-sum": part(F.huber_loss, delta=2.0, reduction="sum"),
        "huber-weight": part(F.huber_loss, delta=0.5, weight=PER_ELEMENT),
        "smooth_l1": F.smooth_l1_loss,
        "smooth_l1-beta": nn.SmoothL1Loss(beta=0.4),
        "smooth_l1-beta-0": nn.SmoothL1Loss(beta=0.0),
        "smooth_l1-sum": part(F.smooth_l1_loss, beta=2.0, reduction="sum"),
        "logits-any-target": nn.BCEWithLogitsLoss(),
    },
    "probabilities": {
        "logits": nn.BCEWithLogitsLoss(),
        "logits-sum": nn.BCEWithLogitsLoss(reduction="sum"),
        "logits-function": F.binary_cross_entropy_with_logits,
        "logits-weight": nn.BCEWithLogitsLoss(weight=WEIGHT),
        "logits-weight-each": part(F.binary_cross_entropy_with_logits, weight=PER_ELEMENT),
        "logits-pos": nn.BCEWithLogitsLoss(pos_weight=WEIGHT),
        "logits-pos-scalar": nn.BCEWithLogitsLoss(pos_weight=WEIGHT[1]),
        "logits-both": nn.BCEWithLogitsLoss(weight=WEIGHT, pos_weight=WEIGHT.flip(0)),
        "bce": nn.BCELoss(),
        "bce-sum": part(F.binary_cross_entropy, reduction="sum"),
        "bce-weight": nn.BCELoss(weight=WEIGHT),
        "soft": F.cross_entropy,
        "soft-module": mlp_ext.nn.CrossEntropyLoss(),
        "soft-sum": part(mlp_ext.functional.cross_entropy, reduction="sum"),
        "soft-smooth": nn.CrossEntropyLoss(label_smoothing=0.3),
        "soft-weight": nn.CrossEntropyLoss(WEIGHT),
        "soft-all-sum-weight": nn.CrossEntropyLoss(WEIGHT, reduction="sum", label_smoothing=0.1),
    },
}
CASES = [(kind, name) for kind, many in LOSSES.items() for name in many]


def in_dtype(loss, dtype):
    if isinstance(loss, nn.Module):
        return copy.deepcopy(loss).to(dtype)
    if not isinstance(loss, part):
        return loss
    options = {k: v.to(dtype) if torch.is_tensor(v) else v for k, v in loss.keywords.items()}
    return part(in_dtype(loss.func, dtype), **options)


@dtypes("f64", "f32")
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_losses(case, dtype):
    kind, name = case
    last = nn.Sigmoid() if name.startswith("bce") else None
    loss = in_dtype(LOSSES[kind][name], dtype)
    twins = Twins(net(SIZES, dtype=dtype, last=last), loss, make("SGD", lr=0.01, momentum=0.5))
    twins.run(kind, ROWS, SIZES, 30)
    twins.check()


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_losses_on_two_threads(case):
    torch.set_num_threads(2)
    kind, name = case
    rows, sizes = TWO_THREADS
    loss = in_dtype(LOSSES[kind][name], torch.float64)
    if isinstance(loss, part) and "weight" in loss.keywords and kind != "classes":
        loss = part(loss.func, **{**loss.keywords, "weight": torch.rand(rows, 5).double() + 0.1})
    last = nn.Sigmoid() if name.startswith("bce") else None
    twins = Twins(net(sizes, last=last), loss, make("SGD", lr=1e-3, momentum=0.5))
    twins.run(kind, rows, sizes, 2)
    twins.check()


@dtypes("f64", "f32")
@pytest.mark.parametrize("scale", (1e-4, 30.0, 1000.0))
@pytest.mark.parametrize("name", ("logits", "logits-pos", "bce", "huber", "smooth_l1", "classes"))
def test_losses_far_out(name, scale, dtype):
    """Logits so large that exponentials overflow and sigmoids are 0 or 1."""
    last = nn.Sigmoid() if name == "bce" else None
    kind = "probabilities" if name[:3] in ("log", "bce") else "values"
    loss = LOSSES[kind].get(name, F.cross_entropy)
    kind = "classes" if name == "classes" else kind
    twins = Twins(
        net(SIZES, nn.Identity, dtype=dtype, last=last), in_dtype(loss, dtype), make("SGD", lr=1e-3)
    )
    x, y = draw(kind, ROWS, SIZES, dtype)
    twins.both(scale * x, y.round() if kind == "probabilities" else y)
    twins.check()


@pytest.mark.parametrize("reduction", ("mean", "sum"))
@pytest.mark.parametrize("smoothing", (0.0, 0.1))
def test_all_targets_ignored(reduction, smoothing):
    loss = nn.CrossEntropyLoss(reduction=reduction, label_smoothing=smoothing)
    twins = Twins(net(SIZES), loss, make("SGD", lr=0.1))
    x, _ = draw("classes", ROWS, SIZES)
    assert twins.both(x, torch.full((ROWS,), -100)).isnan() == (reduction == "mean")
    twins.check()


def test_targets_may_change_from_indices_to_probabilities():
    twins = Twins(net(SIZES), nn.CrossEntropyLoss(label_smoothing=0.1), make("SGD", lr=0.1))
    for kind in ("classes", "probabilities", "classes"):
        twins.run(kind, ROWS, SIZES, 2)
    twins.check()


@pytest.mark.parametrize("columns", (1, 2, 3, 16, 17, 40))
def test_probabilities_of_any_number_of_classes(isa, columns):
    """Layouts of the target too; the kernel has a form for few classes and one for many."""
    twins = Twins(net((6, columns)), F.cross_entropy, make("SGD", lr=0.1))
    for rows in (1, 3, 16, 70):
        x, y = draw("probabilities", rows, (6, columns))
        twins.both(x, y)
        twins.both(x, y.t().contiguous().t())
        twins.both(x, y[:1].expand(rows, columns))
    twins.check()


@pytest.mark.parametrize("reason", ("ignore_index", "shape", "rank"))
def test_refused_probabilities(reason):
    loss = nn.CrossEntropyLoss(ignore_index=1 if reason == "ignore_index" else -100)
    twins = Twins(net(SIZES), loss, make("SGD", lr=0.1, momentum=0.9))
    x, y = draw("probabilities", ROWS, SIZES)
    twins.both(x, y) if reason != "ignore_index" else None
    y = {"shape": y[:, :4], "rank": y[:, 0]}.get(reason, y)
    before = snapshot(twins.step)
    with pytest.raises(RuntimeError, match="ignore_index|target"):
        twins.step(x, y)
    assert_same(before, snapshot(twins.step))


def test_a_weight_that_changes_in_place():
    weight = WEIGHT.clone()
    twins = Twins(net(SIZES), nn.CrossEntropyLoss(weight), make("SGD", lr=0.1))
    twins.run("classes", ROWS, SIZES, 2)
    weight *= torch.linspace(1, 3, 5, dtype=torch.float64)
    twins.run("classes", ROWS, SIZES, 2)
    twins.check()


def test_nan_in_targets_and_weights():
    for kind, loss in (("values", F.huber_loss), ("values", F.mse_loss), ("classes", None)):
        weight = torch.full((5,), float("nan"), dtype=torch.float64)
        loss = loss or nn.CrossEntropyLoss(weight)
        twins = Twins(net(SIZES), loss, make("SGD", lr=0.1))
        x, y = draw(kind, ROWS, SIZES)
        if kind == "values":
            y[2, 3] = float("nan")
        assert twins.both(x, y).isnan()
        twins.check()


REFUSED = {
    "reduction none": nn.MSELoss(reduction="none"),
    "partial with none": part(F.mse_loss, reduction="none"),
    "size_average": part(F.mse_loss, size_average=False),
    "a positional argument": part(F.mse_loss, torch.zeros(7, 5)),
    "lambda": lambda output, target: F.mse_loss(output, target),
    "another": nn.KLDivLoss(),
    "NLLLoss": nn.NLLLoss(),
    "a subclass": type("Mine", (nn.MSELoss,), {})(),
    "BCELoss without sigmoid": nn.BCELoss(),
    "an unknown option": part(F.mse_loss, delta=1.0),
    "smooth_l1 has no weight": part(F.smooth_l1_loss, weight=PER_ELEMENT),
    "smoothing 1.5": nn.CrossEntropyLoss(label_smoothing=1.5),
    "smoothing -0.5": part(F.cross_entropy, label_smoothing=-0.5),
    "delta 0": nn.HuberLoss(delta=0.0),
    "delta -1": part(F.huber_loss, delta=-1.0),
    "beta -1": nn.SmoothL1Loss(beta=-1.0),
}


@pytest.mark.parametrize("loss", REFUSED.values(), ids=REFUSED.keys())
def test_refused_losses(loss):
    model = net(SIZES)
    with pytest.raises(ValueError, match="TrainStep"):
        TrainStep(model, loss, torch.optim.SGD(model.parameters(), 0.1))


@pytest.mark.parametrize("place", ("hook", "forward"))
def test_refused_changes_of_a_loss(place):
    loss, model = nn.MSELoss(), net(SIZES)
    if place == "hook":
        loss.register_forward_hook(lambda module, args, output: 2 * output)
    else:
        loss.forward = lambda output, target: output.sum()
    with pytest.raises(ValueError, match="TrainStep: the loss has"):
        TrainStep(model, loss, torch.optim.SGD(model.parameters(), 0.1))


def random_case(rng):
    sizes = [rng.choice((1, 2, 5, 8, 13, 17, 32, 40, 65)) for _ in range(rng.randint(2, 5))]
    kind = rng.choice(tuple(LOSSES))
    if kind != "values":
        sizes[-1] = 5
    names = [n for n in LOSSES[kind] if "each" not in n and "weight" not in n or kind == "classes"]
    name = rng.choice(names)
    children = []
    for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
        children.append(nn.Linear(fan_in, fan_out, rng.random() < 0.8))
        activation = rng.choice((*ACTIVATION_MODULES, None))
        if activation:
            children.append(ACTIVATION_MODULES[activation]())
        if rng.random() < 0.2:
            children.append(nn.Identity())
    if name.startswith("bce"):
        children += [nn.Linear(sizes[-1], sizes[-1]), nn.Sigmoid()]
    model = nn.Sequential(*children)
    if rng.random() < 0.4:
        rng.choice([c for c in children if isinstance(c, nn.Linear)]).weight.requires_grad_(False)
        model[0].weight.requires_grad_(True)
    maker = rng.choice(
        (
            make("SGD", own=rng.random() < 0.5, lr=0.01, momentum=rng.choice((0, 0.9))),
            make("SGD", lr=0.01, momentum=0.5, nesterov=True, weight_decay=0.01),
            make("Adam", own=rng.random() < 0.5, lr=1e-3, eps=1e-3, amsgrad=rng.random() < 0.5),
            make("AdamW", lr=1e-3, eps=1e-3, weight_decay=0.1, maximize=rng.random() < 0.3),
        )
    )
    return model, sizes, kind, name, maker


@pytest.mark.parametrize("case", range(40))
def test_at_random(case):
    rng = random.Random(case)
    torch.manual_seed(case)
    torch.set_num_threads(rng.choice((1, 1, 1, 2)))
    model, sizes, kind, name, maker = random_case(rng)
    kinked = any(type(m) is ACTIVATION_MODULES[k] for m in model for k in KINKED)
    dtype = torch.float64 if kinked else rng.choice((torch.float32, torch.float64))
    loss = in_dtype(LOSSES[kind][name], dtype)
    twins = Twins(model.to(dtype), loss, maker, clip=rng.choice((None, None, 0.1, 10.0)))
    for _ in range(10):
        twins.both(*draw(kind, rng.choice((1, 2, 3, 8, 31, 64, 150)), sizes, dtype))
    twins.check()
