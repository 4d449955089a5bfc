"""PyTorch's own database of optimizers, run on ours and on torch's classes: every configuration and
every error input that torch's tests have for a class, through everything that is done with one.

torch.testing is private to PyTorch in part, so what it has may change with a release. Importing it
forbids later global assignments to torch.backends' flags; no test makes any.
"""

import contextlib
import copy
import pickle
import warnings

import pytest
import torch
from cases import assert_same_outcome, dtypes, outcome, relative_error
from torch.optim import swa_utils

from mlp_ext import optim

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

MODULES = (optim, torch.optim)
DATABASE = {info.name: info for info in optim_db if info.name in optim.__all__}
SHAPES = ((33, 17), (17,), (), (0,), (3, 1, 5))
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
names = pytest.mark.parametrize("name", DATABASE)


def configurations(name, dtype=torch.float64):
    """(description, keyword arguments) of each, made anew: some hold tensors."""
    inputs = DATABASE[name].optim_inputs_func("cpu", dtype)
    assert all(each.params is None for each in inputs)
    return [(each.desc, each.kwargs) for each in inputs]


def implementations(name):
    """The flags that choose one of torch's implementations; ours has one for all."""
    flags = [{}, {"foreach": True}, {"foreach": False}]
    if "cpu" in DATABASE[name].supports_fused_on:
        flags += [{"fused": True}, {"fused": False}]
    return flags


def parameters(dtype=torch.float64, shapes=SHAPES):
    torch.manual_seed(1)
    return [torch.nn.Parameter(torch.randn(s, dtype=dtype)) for s in shapes]


def step_with_gradients(optimizer, params, steps, closure=False):
    for step in steps:
        torch.manual_seed(10 + step)
        gradients = [torch.randn(p.shape, dtype=p.dtype) for p in params]

        def set_gradients(gradients=gradients):
            for p, g in zip(params, gradients, strict=True):
                p.grad = g
            return torch.tensor(float(step))  # noqa: B023

        if closure:
            assert optimizer.step(set_gradients) == step
        else:
            set_gradients()
            optimizer.step()


def all_tensors(optimizer, params):
    states = [optimizer.state.get(p, {}) for p in params]
    keys = sorted({key for state in states for key in state})
    found = (state[key] for state in states for key in keys if state.get(key) is not None)
    return [*params, *(t.to_dense() if t.is_sparse else t for t in found)]


def check(label, run, tolerance=1e-12):
    """run(module) trains with ours and with torch's; both end alike, or raise alike."""
    return assert_same_outcome(label, *(lambda m=m: run(m) for m in MODULES), tolerance, True)


def test_the_database_has_all_classes():
    assert set(DATABASE) == set(optim.__all__)
    assert all(len(configurations(name)) >= 4 for name in DATABASE)


@names
@dtypes("f64", "f32")
def test_configurations(isa, name, dtype):
    for flags in implementations(name):
        for i, (description, _) in enumerate(configurations(name, dtype)):

            def run(module, i=i, flags=flags):
                options = {**configurations(name, dtype)[i][1], **flags}
                params = parameters(dtype)
                optimizer = getattr(module, name)(params, **options)
                step_with_gradients(optimizer, params, range(6))
                return all_tensors(optimizer, params)

            check(f"{description} {flags}", run, TOLERANCE[dtype])


@names
@dtypes("bf16", "f16")
def test_16_bit_configurations(isa, name, dtype):
    """Torch rounds after each operation, and float16 has no room for some squares: ours is no
    further from the same steps in float64 than twice torch's, or four units in the last place."""
    for i, (description, _) in enumerate(configurations(name, dtype)):

        def run(module, wide, i=i):
            params = parameters(dtype)
            gradients = [torch.randn_like(p) for p in params]
            params = [torch.nn.Parameter(p.detach().double()) for p in params] if wide else params
            optimizer = getattr(module, name)(params, **configurations(name, dtype)[i][1])
            for step in range(1, 5):
                for p, g in zip(params, gradients, strict=True):
                    p.grad = (g / step).to(p.dtype)
                optimizer.step()
            return all_tensors(optimizer, params)

        exact = run(torch.optim, True)
        for ours, theirs, e in zip(run(optim, False), run(torch.optim, False), exact, strict=True):
            assert ours.dtype == theirs.dtype
            floor = 4 * torch.finfo(dtype).eps
            error, limit = relative_error(ours, e), max(2 * relative_error(theirs, e), floor)
            assert error <= limit, f"{description}: {error:.2e} > {limit:.2e}"


@names
def test_complex_parameters(name):
    for i, (description, _) in enumerate(configurations(name)):

        def run(module, i=i):
            params = parameters(torch.complex128)
            optimizer = getattr(module, name)(params, **configurations(name)[i][1])
            step_with_gradients(optimizer, params, range(4))
            return all_tensors(optimizer, params)

        check(description, run)


@names
def test_sparse_gradients(name):
    for i, (description, _) in enumerate(configurations(name)):

        def run(module, i=i):
            params = parameters(shapes=((6, 3),))
            optimizer = getattr(module, name)(params, **configurations(name)[i][1])
            for _ in range(3):
                torch.manual_seed(2)
                params[0].grad = torch.randn(6, 3, dtype=torch.float64).relu().to_sparse()
                optimizer.step()
            return all_tensors(optimizer, params)

        check(description, run)


@names
def test_groups_and_closure(threads, name):
    for i, (description, _) in enumerate(configurations(name)):

        def run(module, i=i):
            options = configurations(name)[i][1]
            params = parameters()
            groups = [{"params": params[:2], "lr": 0.02}, {"params": params[2:4]}]
            optimizer = getattr(module, name)(groups, **options)
            step_with_gradients(optimizer, params, range(3), closure=True)
            optimizer.add_param_group({"params": params[4:], "weight_decay": 0.3})
            step_with_gradients(optimizer, params, range(3, 6), closure=True)
            return all_tensors(optimizer, params)

        check(description, run)


@names
def test_schedulers(name):
    """One at a time, and all that torch tests together."""
    for number, many in enumerate(DATABASE[name].scheduler_inputs):
        for i, (description, _) in enumerate(configurations(name)):

            def run(module, i=i, many=many):
                params = parameters()
                options = {"lr": 0.01, **configurations(name)[i][1]}
                optimizer = getattr(module, name)(params, **options)
                schedulers = [make(optimizer) for make in many]
                for step in range(12):
                    step_with_gradients(optimizer, params, [step])
                    for scheduler in schedulers:
                        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
                        arguments = (step,) if isinstance(scheduler, plateau) else ()
                        scheduler.step(*arguments)
                return all_tensors(optimizer, params)

            check(f"{description}, scheduler {number}", run)


@names
@pytest.mark.parametrize("way", ["ours_to_torch", "torch_to_ours", "ours_to_ours"])
@dtypes("f64", "f32")
def test_state_dict_moves(name, way, dtype):
    first, second = {
        "ours_to_torch": (optim, torch.optim),
        "torch_to_ours": (torch.optim, optim),
        "ours_to_ours": (optim, optim),
    }[way]
    for i, (description, _) in enumerate(configurations(name, dtype)):

        def run(before, after, i=i):
            params = parameters(dtype)
            optimizer = getattr(before, name)(params, **configurations(name, dtype)[i][1])
            step_with_gradients(optimizer, params, range(3))
            state = pickle.loads(pickle.dumps(optimizer.state_dict()))
            optimizer = getattr(after, name)(params, lr=3.0)
            optimizer.load_state_dict(state)
            step_with_gradients(optimizer, params, range(3, 6))
            return all_tensors(optimizer, params)

        assert_same_outcome(
            description,
            lambda run=run: run(first, second),
            lambda run=run: run(torch.optim, torch.optim),
            TOLERANCE[dtype],
        )


@names
def test_pickle_and_deepcopy(name):
    for duplicate in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
        for i, (description, _) in enumerate(configurations(name)):

            def run(module, i=i, duplicate=duplicate):
                params = parameters()
                optimizer = getattr(module, name)(params, **configurations(name)[i][1])
                step_with_gradients(optimizer, params, range(3))
                twin_params, twin = duplicate((params, optimizer))
                assert type(twin) is type(optimizer)
                step_with_gradients(twin, twin_params, range(3, 6))
                return [*all_tensors(twin, twin_params), *params]

            check(description, run)


@names
@dtypes("f64", "f32")
def test_error_inputs(name, dtype):
    inputs = DATABASE[name].optim_error_inputs_func("cpu", dtype)
    assert len(inputs) >= 6
    for error in inputs:
        assert error.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR
        given = error.optimizer_error_input
        params = parameters(dtype) if given.params is None else given.params
        seen = []
        for module in MODULES:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                seen.append(outcome(lambda m=module: getattr(m, name)(params, **given.kwargs)))  # noqa: B023
        assert seen[0] == seen[1] and seen[0][0] == "raises", f"{given.desc}: {seen}"
        with contextlib.suppress(error.error_type), warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            getattr(optim, name)(params, **given.kwargs)
            raise AssertionError(f"{given.desc}: not {error.error_type.__name__}")


@names
def test_hooks(name):
    """Of the step, of state_dict and of load_state_dict: called alike, in the same order."""

    def run(module):
        seen = []
        params = parameters()
        optimizer = getattr(module, name)(params, lr=0.1)
        optimizer.register_step_pre_hook(lambda o, a, k: seen.append(1.0))
        optimizer.register_step_post_hook(lambda o, a, k: seen.append(2.0))
        optimizer.register_state_dict_pre_hook(lambda o: seen.append(3.0))
        optimizer.register_state_dict_post_hook(lambda o, s: seen.append(4.0))
        optimizer.register_load_state_dict_pre_hook(lambda o, s: seen.append(5.0))
        optimizer.register_load_state_dict_post_hook(lambda o: seen.append(6.0))
        step_with_gradients(optimizer, params, range(2))
        optimizer.load_state_dict(optimizer.state_dict())
        step_with_gradients(optimizer, params, range(2, 4))
        assert len(seen) == 12
        return [*all_tensors(optimizer, params), torch.tensor(seen)]

    check("hooks", run)


@names
@pytest.mark.parametrize("kind", ["swa", "ema"])
def test_averaged_models(name, kind):
    """AveragedModel copies the parameters that the step has written to, and SWALR moves lr."""

    def run(module):
        torch.manual_seed(3)
        model = torch.nn.Linear(7, 5, dtype=torch.float64)
        optimizer = getattr(module, name)(model.parameters(), lr=0.05)
        average = swa_utils.get_ema_multi_avg_fn(0.9) if kind == "ema" else None
        averaged = swa_utils.AveragedModel(model, multi_avg_fn=average)
        scheduler = swa_utils.SWALR(optimizer, swa_lr=0.01, anneal_epochs=3)
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.randn(4, 7, dtype=torch.float64)).square().mean().backward()
            optimizer.step()
            averaged.update_parameters(model)
            scheduler.step()
        return [*averaged.parameters(), *model.parameters()]

    check(kind, run)
