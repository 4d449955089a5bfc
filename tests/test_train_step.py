"""TrainStep against the plain PyTorch loop: layers, optimizers, threads, and what else may happen
to model and optimizer between two calls."""

import pytest
import torch
import torch.nn.functional as F
from cases import KINKED, activations, dtypes, relayout
from torch import nn
from train_twins import LAYERS, ROWS, Twins, draw, make, net
from twins import ACTIVATION_MODULES

import mlp_ext

# A larger eps: Adam amplifies the rounding of gradients that are 0 in exact arithmetic.
OPTIMIZERS = {
    "sgd": make("SGD", lr=0.1),
    "sgd-torch": make("SGD", own=False, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "sgd-nesterov": make("SGD", lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "sgd-dampening": make("SGD", lr=0.05, momentum=0.8, dampening=0.3),
    "sgd-maximize": make("SGD", lr=0.001, momentum=0.5, maximize=True),
    "adam": make("Adam", lr=3e-3, eps=1e-4),
    "adam-torch": make("Adam", own=False, lr=3e-3, eps=1e-4, amsgrad=True),
    "adam-fused": make("Adam", own=False, lr=3e-3, eps=1e-4, fused=True),
    "adam-decay": make("Adam", lr=3e-3, eps=1e-4, weight_decay=0.01, betas=(0.8, 0.99)),
    "adam-maximize": make("Adam", lr=1e-4, eps=1e-4, maximize=True),
    "adamw": make("AdamW", lr=3e-3, eps=1e-4, weight_decay=0.1, amsgrad=True),
    "adamw-torch": make("AdamW", own=False, lr=3e-3, eps=1e-4),
    "adagrad": make("Adagrad", lr=0.02, lr_decay=0.01, initial_accumulator_value=0.1),
    "adagrad-torch": make("Adagrad", own=False, lr=0.02, eps=1e-3, weight_decay=0.01),
    "rmsprop": make("RMSprop", lr=3e-3, eps=1e-3, momentum=0.9, centered=True),
    "rmsprop-torch": make("RMSprop", own=False, lr=3e-3, eps=1e-3, weight_decay=0.01),
    "rmsprop-momentum": make("RMSprop", lr=1e-3, eps=1e-3, momentum=0.5, maximize=True),
    "nadam": make("NAdam", lr=3e-3, eps=1e-4, weight_decay=0.01, decoupled_weight_decay=True),
    "nadam-torch": make("NAdam", own=False, lr=3e-3, eps=1e-4, momentum_decay=0.05),
    "radam": make("RAdam", lr=3e-3, eps=1e-4, betas=(0.8, 0.99)),
    "radam-torch": make("RAdam", own=False, lr=3e-3, eps=1e-4, weight_decay=0.01),
    "adamax": make("Adamax", lr=3e-3, eps=1e-4, weight_decay=0.01),
    "adamax-torch": make("Adamax", own=False, lr=3e-3, eps=1e-4, betas=(0.8, 0.99)),
}
optimizers = pytest.mark.parametrize("maker", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
cuts = pytest.mark.parametrize("shape", (ROWS, LAYERS), ids=("rows", "layers"))
SMALL = (7, 9, 6, 3)


@optimizers
@dtypes("f64", "f32")
def test_200_steps(maker, dtype):
    twins = Twins(net((11, 16, 8, 3), dtype=dtype), F.cross_entropy, maker)
    twins.run("classes", 20, (11, 16, 8, 3), 200)
    twins.check()


@cuts
@dtypes("f64", "f32")
def test_many_steps_of_both_cuts(shape, dtype):
    torch.set_num_threads(2)
    rows, sizes = shape
    twins = Twins(net(sizes, nn.SiLU, dtype=dtype), F.mse_loss, OPTIMIZERS["adam"])
    twins.run("values", rows, sizes, 40)
    twins.check()


@cuts
@dtypes("f64", "f32")
@pytest.mark.parametrize("clip", (None, 0.05))
@pytest.mark.parametrize("bias", (True, False), ids=("bias", "no_bias"))
def test_threads_and_cuts(shape, dtype, clip, bias, threads):
    rows, sizes = shape
    twins = Twins(net(sizes, dtype=dtype, bias=bias), F.cross_entropy, OPTIMIZERS["sgd"], clip=clip)
    for n in (rows, rows - 1, 1, 2, rows // 2 + 1, rows + 13):
        twins.run("classes", n, sizes, 1)
    twins.check()


@activations()
@dtypes("f64", "f32")
def test_activations(activation, dtype):
    module = ACTIVATION_MODULES[activation] if activation else nn.Identity
    model = net(SMALL, module, dtype=dtype, last=module())
    twins = Twins(model, F.mse_loss, OPTIMIZERS["sgd-nesterov"])
    # In float32 rounding alone decides on which side of a kink a few of thousands of values are.
    twins.run("values", 20, SMALL, 8 if activation in KINKED and dtype == torch.float32 else 200)
    twins.check()


@dtypes("f64", "f32")
@pytest.mark.parametrize("kind", ("classes", "probabilities", "values"))
def test_isas(isa, dtype, kind):
    losses = {
        "classes": nn.CrossEntropyLoss(torch.rand(5, dtype=dtype), label_smoothing=0.1),
        "probabilities": nn.BCEWithLogitsLoss(pos_weight=torch.rand(5, dtype=dtype) + 0.5),
        "values": nn.HuberLoss(delta=0.7),
    }
    names = [name for name in ACTIVATION_MODULES if name not in KINKED]
    sizes = (19, *range(17, 17 + len(names)))
    children = []
    for name, fan_in, fan_out in zip(names, sizes, sizes[1:], strict=False):
        children += [nn.Linear(fan_in, fan_out), ACTIVATION_MODULES[name]()]
    model = nn.Sequential(*children, nn.Linear(sizes[-1], 5)).to(dtype)
    twins = Twins(model, losses[kind], OPTIMIZERS["adamw"], clip=0.5)
    twins.run(kind, 21, (19, 5), 20)
    twins.check()


def test_groups_options_and_schedule():
    def maker(model, plain):
        module = torch.optim if plain else mlp_ext.optim
        groups = [
            {"params": [model[4].bias, model[0].weight], "lr": 0.01, "weight_decay": 0.2},
            {"params": [model[2].weight, model[4].weight], "betas": (0.5, 0.9), "amsgrad": True},
            {"params": [model[0].bias, model[2].bias], "eps": 1e-2, "maximize": True},
        ]
        return module.AdamW(groups, lr=3e-3, eps=1e-4)

    twins = Twins(net(SMALL), F.cross_entropy, maker)
    pair = twins.optimizer, twins.plain_optimizer
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.95) for o in pair]
    for i in range(40):
        twins.run("classes", 8, SMALL, 1)
        for optimizer, scheduler in zip(pair, schedulers, strict=True):
            scheduler.step()
            optimizer.param_groups[1]["weight_decay"] = 0.01 * i
            optimizer.param_groups[2]["betas"] = (0.9 - 0.01 * i, 0.99)
    twins.check()


@dtypes("f64", "f32")
@pytest.mark.parametrize("max_norm", (1e-3, 0.3, 1e3))
@pytest.mark.parametrize("name", ("SGD", "AdamW"))
def test_clipping(max_norm, dtype, name, threads):
    rows, sizes = ROWS
    maker = make(name, lr=0.01, **({"eps": 1e-3} if name == "AdamW" else {"momentum": 0.9}))
    twins = Twins(net(sizes, dtype=dtype), nn.MSELoss(), maker, clip=max_norm)
    twins.run("values", rows, sizes, 5)
    twins.check()


def test_clipping_measures_all_gradients_of_the_model():
    def maker(model, plain):
        return torch.optim.SGD([*model[0].parameters(), model[4].weight], lr=0.1)

    twins = Twins(net(SMALL), F.mse_loss, maker, clip=0.1)
    for _ in range(3):
        twins.plain.zero_grad()  # what the optimizer does not know would add up
        twins.run("values", 8, SMALL, 1)
    twins.check()


PLACES = ("0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias")
FROZEN = [[p] for p in PLACES] + [list(PLACES[:i]) for i in (2, 3, 4, 5)]
FROZEN += [list(PLACES[i:]) for i in (1, 2, 3, 4)] + [list(PLACES[2:4]), list(PLACES[::2])]


@pytest.mark.parametrize("frozen", FROZEN, ids="+".join)
@cuts
def test_frozen(frozen, shape, threads):
    rows, sizes = shape
    twins = Twins(net(sizes), F.cross_entropy, OPTIMIZERS["adam"], clip=0.1)
    for model in (twins.model, twins.plain):
        for name in frozen:
            model.get_parameter(name).requires_grad_(False)
    for _ in range(2):
        twins.both(*draw("classes", rows, sizes), keep_grad=True)
    twins.check()
    for (name, ours), theirs in zip(
        twins.model.named_parameters(), twins.plain.parameters(), strict=True
    ):
        assert (ours.grad is None) == (theirs.grad is None) == (name in frozen), name


@pytest.mark.parametrize(
    "layout", ("transposed", "rows_apart", "columns_apart", "misaligned", "expanded_rows")
)
def test_layouts(layout):
    twins = Twins(net(SMALL), F.mse_loss, OPTIMIZERS["sgd"])
    for rows in (8, 1):
        x, y = draw("values", rows, SMALL)
        twins.both(relayout(x, layout), relayout(y, layout))
    twins.check()


def test_views_that_negate():
    """What such a tensor has in memory is its negative."""
    twins = Twins(net(SMALL), F.mse_loss, OPTIMIZERS["sgd"])
    x, y = map(torch._neg_view, draw("values", 8, SMALL))
    assert x.is_neg() and x.is_contiguous()
    twins.both(x, y)
    twins.check()


MODELS = {
    "flatten": lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3)),
    "identity": lambda: nn.Sequential(
        nn.Identity(), nn.Flatten(), nn.Linear(12, 5), nn.Identity(), nn.ELU(), nn.Linear(5, 3)
    ),
    "nested": lambda: nn.Sequential(
        nn.Flatten(), nn.Sequential(nn.Linear(12, 5), nn.Sequential(nn.SiLU())), nn.Linear(5, 3)
    ),
    "own": lambda: nn.Sequential(
        nn.Flatten(), mlp_ext.nn.Linear(12, 5, activation="gelu_tanh"), mlp_ext.nn.LinearReLU(5, 3)
    ),
    "mlp": lambda: nn.Sequential(nn.Flatten(), mlp_ext.nn.MLP([12, 6, 5, 3], activation="tanh")),
    "fused": lambda: mlp_ext.fuse(nn.Sequential(nn.Flatten(), net((12, 9, 3), nn.ELU))),
    "one": lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3)),
}


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
def test_models(build):
    twins = Twins(build().double(), F.cross_entropy, OPTIMIZERS["adam"])
    for shape in ((8, 3, 4), (1, 12), (5, 2, 3, 2)):
        twins.both(torch.randn(shape, dtype=torch.float64), torch.randint(3, shape[:1]))
    twins.check()


def test_a_single_linear():
    twins = Twins(nn.Linear(4, 3), F.cross_entropy, OPTIMIZERS["adam"])
    twins.run("classes", 9, (4, 3), 20)
    twins.check()
