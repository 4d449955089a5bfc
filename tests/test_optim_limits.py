"""Where mlp_ext.optim goes as torch.optim does, or refuses as it does: flags, odd tensors."""

import pytest
import torch
from cases import (
    OPTIMIZERS,
    assert_same_outcome,
    build,
    classes,
    optimizer_parameters,
    outcome,
    run,
    set_gradients,
)

from mlp_ext import optim

MODULES = (optim, torch.optim)


FLAGS = (
    {"foreach": True},
    {"foreach": False},
    {"fused": True},
    {"fused": False},
    {"foreach": True, "fused": True},
    {"capturable": True},
    {"differentiable": True},
    {"differentiable": True, "fused": True},
    {"maximize": True, "foreach": True},
    {"lr": torch.tensor(0.1), "foreach": True},
)


@classes
@pytest.mark.parametrize("flags", FLAGS, ids=lambda f: "-".join(f))
def test_flags_do_what_they_do_in_torch(isa, name, flags):
    def steps(module):
        params = optimizer_parameters(torch.float32)
        optimizer = build(module, name, params, **flags)
        run(optimizer, params, range(5))
        return params

    assert_same_outcome("", *(lambda m=m: steps(m) for m in MODULES))


@classes
def test_parameters_that_share_memory(threads, name):
    """Two threads must not update the same elements: torch's loop does, one after the other."""

    def steps(module):
        whole = torch.nn.Parameter(torch.zeros(300_000))
        params = [whole, torch.nn.Parameter(whole.data), torch.nn.Parameter(whole.data[1000:])]
        optimizer = build(module, name, params)
        run(optimizer, params, range(3))
        return params

    assert_same_outcome("", *(lambda m=m: steps(m) for m in MODULES))


def test_zero_tensor_as_gradient():
    """A gradient without memory, which forward-mode AD makes."""
    p = torch.nn.Parameter(torch.ones(10))
    p.grad = torch._efficientzerotensor(10)
    optim.SGD([p], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(p.detach(), torch.full((10,), 0.95))


@classes
def test_differentiable(name):
    """Gradients through the step itself, with respect to the parameter and the gradient."""

    def through(module):
        torch.manual_seed(0)
        start = torch.randn(4, dtype=torch.float64, requires_grad=True)
        grad = torch.randn(4, dtype=torch.float64, requires_grad=True)
        p = start.clone()
        p.grad = grad * 2
        options = {} if name != "Adam" else {"amsgrad": False}
        build(module, name, [p], differentiable=True, **options).step()
        return torch.autograd.grad(p.square().sum(), (start, grad))

    assert_same_outcome("", *(lambda m=m: through(m) for m in MODULES), 1e-12)


@classes
@pytest.mark.parametrize("fused", [None, True, False], ids=str)
@pytest.mark.parametrize("overflow", [False, True], ids=["finite", "overflow"])
def test_grad_scaler(isa, name, fused, overflow):
    """torch.amp.GradScaler hands scale and found_inf to the step where fused=True says it may."""

    def steps(module):
        params = optimizer_parameters(torch.float32)
        optimizer = build(module, name, params, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        for step in range(4):
            optimizer.zero_grad()
            torch.manual_seed(step)
            loss = sum((p * torch.randn(p.shape)).sum() for p in params)
            scaler.scale(loss).backward()
            if overflow and step == 1:
                params[1].grad.view(-1)[3] = float("inf")
            scaler.step(optimizer)
            scaler.update()
        return [*params, torch.tensor(scaler.get_scale())]

    assert_same_outcome("", *(lambda m=m: steps(m) for m in MODULES))


def plain(p, g):
    p.grad = g
    return [p]


ODD = {
    "sparse": lambda: plain(torch.nn.Parameter(torch.ones(4)), torch.eye(4)[1].to_sparse()),
    "complex": lambda: plain(
        torch.nn.Parameter(torch.ones(3, dtype=torch.cfloat)), torch.full((3,), 1 + 2j)
    ),
    "integer": lambda: plain(
        torch.nn.Parameter(torch.ones(3, dtype=torch.int32), False), torch.ones(3).int()
    ),
    "meta": lambda: plain(
        torch.nn.Parameter(torch.ones(3, device="meta")), torch.ones(3).to("meta")
    ),
    "expanded_parameter": lambda: plain(
        torch.nn.Parameter(torch.ones(1, 3).expand(4, 3)), torch.ones(4, 3)
    ),
    "grad_is_the_parameter": lambda: (lambda p: plain(p, p.detach()))(
        torch.nn.Parameter(torch.full((5,), 0.5))
    ),
}


@classes
@pytest.mark.parametrize("odd", ODD)
def test_odd_tensors_go_as_in_torch(isa, name, odd):
    def steps(module):
        params = ODD[odd]()
        optimizer = build(module, name, params, lr=0.1, weight_decay=0.0)
        for _ in range(3):
            optimizer.step()
        return [] if odd == "meta" else params

    assert_same_outcome("", *(lambda m=m: steps(m) for m in MODULES), message=False)


def spoil(value, how):
    """A state tensor as a mismatched checkpoint may bring it."""
    return {
        "shape": lambda: torch.ones(3, dtype=value.dtype),
        "longer": lambda: torch.ones(value.numel() + 1, dtype=value.dtype),
        "dtype": lambda: value.float(),
        "strided": lambda: torch.stack([value, value], -1)[..., 0],
        "meta": lambda: value.to("meta"),
    }[how]()


def states_of(name):
    params = optimizer_parameters()
    optimizer = build(torch.optim, name, params)
    run(optimizer, params, range(1))
    return [key for key, value in optimizer.state[params[1]].items() if value.dim()]


@pytest.mark.parametrize("how", ["shape", "longer", "dtype", "strided", "meta"])
@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name in OPTIMIZERS for key in states_of(name)]
)
def test_state_that_does_not_fit(isa, name, key, how):
    """load_state_dict checks no shapes, so the step must; refused, it has moved no parameter."""
    kept = {}

    def steps(module):
        params = optimizer_parameters()
        optimizer = build(module, name, params)
        run(optimizer, params, range(2))
        state = optimizer.state[params[1]]
        state[key] = spoil(state[key], how)
        watched = [*params, *optimizer.state[params[0]].values()]
        kept[module] = watched, [t.detach().clone() for t in watched]
        set_gradients(params, 2)
        optimizer.step()
        return params

    if assert_same_outcome(how, *(lambda m=m: steps(m) for m in MODULES), 1e-12)[0] == "raises":
        assert all(torch.equal(t, before) for t, before in zip(*kept[optim], strict=True))


@pytest.mark.parametrize("how", ["missing", "vector", "number", "int64"])
@pytest.mark.parametrize("key", ["step", "mu_product"])
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "SGD"])
def test_counter_that_does_not_fit(isa, name, key, how):
    """What is no scalar float tensor is torch's affair, which computes with it, or raises."""

    def steps(module):
        params = optimizer_parameters()
        optimizer = build(module, name, params)
        run(optimizer, params, range(2))
        state = optimizer.state[params[1]]
        if key in state:
            value = state.pop(key)
            made = {"vector": value.reshape(1), "number": value.item(), "int64": value.long()}
            if how in made:
                state[key] = made[how]
        run(optimizer, params, range(2, 4))
        return params

    assert_same_outcome(how, *(lambda m=m: steps(m) for m in MODULES), 1e-12)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop", "NAdam", "RAdam", "Adamax"])
def test_a_failed_step_changes_nothing(isa, name):
    """They refuse the second parameter's sparse gradient: the first has not moved."""
    params = optimizer_parameters(torch.float32)
    optimizer = build(optim, name, params)
    set_gradients(params, 0)
    params[1].grad = torch.ones(17).to_sparse()
    copies = [p.detach().clone() for p in params]
    rng = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    assert all(torch.equal(p, c) for p, c in zip(params, copies, strict=True))
    # The state of the others may have been set up, as torch's is, but no step counted.
    assert all(s["step"] == 0 for s in map(optimizer.state.get, params) if s)
    assert torch.equal(torch.get_rng_state(), rng)


REFUSED = (
    {"lr": -1.0},
    {"lr": "fast"},
    {"lr": torch.ones(2)},
    {"weight_decay": -0.5},
    {"betas": (1.0, 0.9)},
    {"betas": (0.9, -0.1)},
    {"betas": (torch.tensor(0.9), 0.9)},
    {"eps": -1e-8},
    {"momentum": -0.1},
    {"nesterov": True, "momentum": 0.0},
    {"nesterov": True, "dampening": 0.1},
    {"unknown": 1},
)


@classes
@pytest.mark.parametrize(
    "options", REFUSED, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items())
)
def test_constructor_refuses_what_torch_refuses(name, options):
    def make(module):
        build(module, name, optimizer_parameters(), **options)
        return []

    assert_same_outcome("", *(lambda m=m: make(m) for m in MODULES))


@classes
def test_constructor_refuses_bad_parameters(name):
    p = torch.nn.Parameter(torch.ones(3))
    for params in (
        [],
        [1],
        torch.ones(3),
        [p * 2],
        [{"params": [p]}, {"params": [p]}],
        [{"lr": 1.0}],
    ):
        outcomes = [outcome(lambda m=m, a=params: getattr(m, name)(a)) for m in MODULES]
        assert outcomes[0] == outcomes[1] and outcomes[0][0] == "raises", params
    for module in MODULES:
        with pytest.warns(UserWarning, match="duplicate parameters"):
            getattr(module, name)([p, p])
    with pytest.raises(ValueError, match="param_groups|parameter group"):
        other = build(torch.optim, name, optimizer_parameters())
        build(optim, name, optimizer_parameters()[:1]).load_state_dict(other.state_dict())
