"""mlp_ext.optim as drop-in for torch.optim: state_dict, schedulers, hooks, flags, refusals."""

import copy
import io
import pickle

import pytest
import torch
from cases import (
    OPTIMIZERS,
    assert_close,
    assert_same_outcome,
    build,
    classes,
    loop,
    optimizer_parameters,
    relative_error,
    run,
    set_gradients,
)

from mlp_ext import optim

MODULES = (optim, torch.optim)


@classes
def test_is_the_torch_class(name):
    optimizer = build(optim, name, optimizer_parameters())
    assert isinstance(optimizer, getattr(torch.optim, name))
    assert type(optimizer).__name__ == name
    theirs = build(torch.optim, name, optimizer_parameters())
    assert optimizer.defaults == theirs.defaults
    assert optimizer.param_groups[0].keys() == theirs.param_groups[0].keys()
    ours, others = optimizer.state_dict(), theirs.state_dict()
    assert ours["param_groups"] == others["param_groups"]
    torch.testing.assert_close(ours["state"], others["state"], rtol=0, atol=0)  # Adagrad has some


@classes
@pytest.mark.parametrize("way", ["ours_to_torch", "torch_to_ours", "ours_to_ours", "to_file"])
def test_state_dict_in_the_middle_of_training(isa, name, way):
    first, second = {
        "ours_to_torch": (optim, torch.optim),
        "torch_to_ours": (torch.optim, optim),
    }.get(way, (optim, optim))
    straight, moved = optimizer_parameters(), optimizer_parameters()
    whole = build(torch.optim, name, straight, **loop(name))
    run(whole, straight, range(9))
    whole.load_state_dict(whole.state_dict())  # torch widens a float64 parameter's mu_product
    run(whole, straight, range(9, 20))

    before = build(first, name, moved, lr=0.5)
    before.param_groups[0]["lr"] = OPTIMIZERS[name]["lr"]  # travels in the state_dict
    run(before, moved, range(9))
    state = before.state_dict()
    if way == "to_file":
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
    moved = [torch.nn.Parameter(p.detach().clone()) for p in moved]
    after = build(second, name, moved, lr=77.0)
    after.load_state_dict(state)
    run(after, moved, range(9, 20))
    assert_close("", moved, straight)

    ours, theirs = after.state_dict(), whole.state_dict()
    assert ours["state"].keys() == theirs["state"].keys()
    for i, state in theirs["state"].items():
        assert ours["state"][i].keys() == state.keys()
        for key, value in state.items():
            assert relative_error(ours["state"][i][key], value) <= 1e-12
            assert ours["state"][i][key].dtype == value.dtype
    unlike = {"foreach", "fused"}
    for mine, other in zip(ours["param_groups"], theirs["param_groups"], strict=True):
        assert mine.keys() == other.keys()
        assert all(mine[k] == other[k] for k in other.keys() - unlike)


@classes
def test_pickle_and_deepcopy(name):
    for duplicate in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
        params = optimizer_parameters()
        optimizer = build(optim, name, params)
        run(optimizer, params, range(5))
        twin_params, twin = duplicate((params, optimizer))
        assert type(twin) is type(optimizer)
        run(twin, twin_params, range(5, 9))
        run(optimizer, params, range(5, 9))
        assert_close("", twin_params, params, 0)
        assert twin_params[0].data_ptr() != params[0].data_ptr()


@classes
def test_schedulers(isa, name):
    """OneCycleLR moves momentum and betas as well; ReduceLROnPlateau and LambdaLR only lr."""
    cycles = {
        "one": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.2, total_steps=21),
        "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda n: 0.9**n),
    }
    for kind, make in cycles.items():

        def steps(module, make=make):
            params = optimizer_parameters()
            optimizer = build(module, name, params)
            scheduler = make(optimizer)
            for step in range(20):
                run(optimizer, params, [step])
                scheduler.step()
            return params

        both = (lambda m=m, steps=steps: steps(m) for m in MODULES)
        assert_same_outcome(kind, *both, 1e-12, message=True)


@classes
def test_tensor_lr_and_tensor_betas(isa, name):
    def steps(module, **options):
        params = optimizer_parameters()
        optimizer = build(module, name, params, **options)
        run(optimizer, params, range(3))
        if isinstance(options.get("lr"), torch.Tensor):
            optimizer.param_groups[0]["lr"].mul_(0.5)
        run(optimizer, params, range(3, 6))
        return params

    # A float32 hyperparameter makes torch compute its step sizes in float32.
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        for lr in (torch.tensor(0.02, dtype=dtype), torch.tensor([0.02], dtype=dtype)):
            both = (lambda m=m, lr=lr: steps(m, lr=lr.clone()) for m in MODULES)
            assert_same_outcome(f"lr {lr}", *both, tolerance)
        betas = (torch.tensor(0.8, dtype=dtype), torch.tensor(0.9, dtype=dtype))
        both = (lambda m=m, betas=betas: steps(m, betas=betas) for m in MODULES)
        assert_same_outcome(f"betas {betas}", *both, tolerance)


@classes
def test_closure(isa, name):
    results = []
    for module in MODULES:
        params = optimizer_parameters()
        optimizer = build(module, name, params)
        calls = []

        def closure(params=params, optimizer=optimizer, calls=calls):
            assert torch.is_grad_enabled()
            calls.append(None)
            optimizer.zero_grad()
            loss = sum(p.square().sum() for p in params)
            loss.backward()
            return loss

        with torch.no_grad():
            losses = [optimizer.step(closure) for _ in range(5)]
        assert len(calls) == 5 and optimizer.step() is None
        results.append([*params, *losses])
    assert_close("", *results)


@classes
def test_hooks(name):
    params = optimizer_parameters()
    optimizer = build(optim, name, params)
    seen = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append(("pre", o)))
    optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append(("post", o)))
    run(optimizer, params, range(2))
    assert seen == [("pre", optimizer), ("post", optimizer)] * 2


@classes
def test_version_counters_and_requires_grad(isa, name):
    """An update between forward and backward is noticed; the parameter stays a leaf."""
    params = optimizer_parameters()
    optimizer = build(optim, name, params)
    for step in range(3):
        versions = [p._version for p in params]
        run(optimizer, params, [step])
        assert all(p._version > v for p, v in zip(params, versions, strict=True))
        assert all(p.grad._version == 0 for p in params)
        assert all(p.requires_grad and p.is_leaf for p in params)
    state = optimizer.state[params[0]]
    assert not any(v.requires_grad for v in state.values())
    loss = params[0].square().sum()
    run(optimizer, params, [3])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@classes
def test_gradients_are_left_alone(isa, name):
    params = optimizer_parameters()
    optimizer = build(optim, name, params, maximize=True, weight_decay=0.1)
    set_gradients(params, 0)
    grads = [p.grad for p in params]
    copies = [g.clone() for g in grads]
    optimizer.step()
    for p, g, c in zip(params, grads, copies, strict=True):
        assert p.grad is g and torch.equal(g, c)
    optimizer.step()  # the momentum buffer of the first step is no alias of the gradient
    assert all(torch.equal(g, c) for g, c in zip(grads, copies, strict=True))
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


@classes
def test_requires_grad_toggled(isa, name):
    results = []
    for module in MODULES:
        params = optimizer_parameters()
        optimizer = build(module, name, params)
        run(optimizer, params, range(2))
        params[0].requires_grad_(False)
        run(optimizer, params, range(2, 4))
        params[0].requires_grad_(True)
        params[1].grad = None
        optimizer.step()
        results.append(params)
    assert_close("", *results)


@classes
def test_the_profiler_sees_step_and_zero_grad(name):
    params = optimizer_parameters()
    optimizer = build(optim, name, params)
    set_gradients(params, 0)
    with torch.profiler.profile() as profile:
        optimizer.step()
        optimizer.zero_grad()
    names = {event.key for event in profile.key_averages()}
    assert {f"Optimizer.step#{name}.step", f"Optimizer.zero_grad#{name}.zero_grad"} <= names


@classes
@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(name, set_to_none):
    params = optimizer_parameters()
    optimizer = build(optim, name, params)
    set_gradients(params, 0)
    params[0].grad = None
    optimizer.zero_grad(set_to_none)
    assert params[0].grad is None
    if set_to_none:
        assert all(p.grad is None for p in params)
    else:
        assert all(not p.grad.any() for p in params[1:])


@classes
def test_a_subclass_may_have_a_step_of_its_own(name):
    """torch wraps the step of a subclass; the step of ours inside it must not run hooks again."""

    class Counting(getattr(optim, name)):
        def step(self, closure=None):
            return super().step(closure)

    params = optimizer_parameters()
    optimizer = Counting(params, lr=0.1)
    set_gradients(params, 0)
    before = [p.detach().clone() for p in params]
    seen = []
    optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append(o))
    optimizer.step()
    assert seen == [optimizer]
    assert not all(torch.equal(p, b) for p, b in zip(params, before, strict=True))


@classes
def test_first_step_after_torch_compile_was_used(name):
    """It wraps methods of torch's optimizers, of which ours call the one that makes the state."""
    torch.compile(torch.sin, backend="eager")(torch.ones(2))
    results = []
    for module in MODULES:
        params = optimizer_parameters()
        run(build(module, name, params), params, range(2))
        results.append(params)
    assert_close("", *results)
