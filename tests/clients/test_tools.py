"""What a training script does around model and optimizer: averages of the weights, vectors of
parameters, deferred initialisation, quantization, modes of the whole process."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import swa_utils
from twins import assert_same

import mlp_ext
from mlp_ext import explain, fuse

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(12) % 3


def plain_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 3)
    )


def twins() -> tuple[nn.Module, nn.Module]:
    return fuse(plain_net()), plain_net()


def optimizer_of(model: nn.Module, name: str = "Adam", **options) -> torch.optim.Optimizer:
    module = mlp_ext.optim if type(model) is mlp_ext.nn.Sequential else torch.optim
    return getattr(module, name)(model.parameters(), lr=0.02, **options)


def train(model, optimizer, steps=5, after=lambda: None):
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        after()
    return model


def close(ours, plain, what="state_dict", **tolerance):
    tolerance = tolerance or {"rtol": 1e-4, "atol": 1e-5}
    ours, plain = (m.state_dict() if isinstance(m, nn.Module) else m for m in (ours, plain))
    torch.testing.assert_close(ours, plain, **tolerance, msg=lambda m: f"{what}: {m}")


AVERAGES = {
    "mean": {},
    "EMA": {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.8)},
    "EMA with buffers": {"avg_fn": swa_utils.get_ema_avg_fn(0.8), "use_buffers": True},
}


@pytest.mark.parametrize("options", AVERAGES.values(), ids=AVERAGES)
def test_averaged_weights(options):
    results = []
    for model in twins():
        averaged = swa_utils.AveragedModel(model, **options)
        assert type(averaged.module) is type(model)
        optimizer = optimizer_of(model)
        schedule = swa_utils.SWALR(optimizer, swa_lr=0.05, anneal_epochs=3)

        def after(averaged=averaged, model=model, schedule=schedule):
            averaged.update_parameters(model)
            schedule.step()

        train(model, optimizer, after=after)
        if not options.get("use_buffers"):
            swa_utils.update_bn([X[:7], X[7:]], averaged)
        results.append(averaged)
        assert not torch.equal(averaged.module[0].weight, model[0].weight)
    close(*results)
    torch.testing.assert_close(*(a.eval()(X) for a in results), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_parameters_as_one_vector(name):
    """vector_to_parameters makes all parameters views of one tensor, at odd offsets."""
    results = []
    for model in twins():
        optimizer = optimizer_of(model, name)
        train(model, optimizer, 2)
        vector = nn.utils.parameters_to_vector(model.parameters())
        nn.utils.vector_to_parameters(vector.detach() * 0.9, model.parameters())
        base = model[0].weight.untyped_storage().data_ptr()
        assert all(p.untyped_storage().data_ptr() == base for p in model.parameters())
        results.append(train(model, optimizer))
    close(*results)


def test_clipping():
    results = []
    for model in twins():
        norms = []

        def clip(model=model, norms=norms):
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.1).item())
            nn.utils.clip_grad_value_(model.parameters(), 0.01)

        optimizer = optimizer_of(model, "SGD")
        optimizer.register_step_pre_hook(lambda *args, clip=clip: clip())
        results.append((train(model, optimizer).state_dict(), norms))
    close(*results)
    assert max(results[0][1]) > 0.1


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_the_optimizer_in_backward(name):
    """One optimizer a parameter, stepped as soon as its gradient is there."""
    results = []
    for model in twins():
        module = mlp_ext.optim if type(model) is mlp_ext.nn.Sequential else torch.optim
        steppers = {p: getattr(module, name)([p], lr=0.02) for p in model.parameters()}

        def step(parameter, steppers=steppers):
            steppers[parameter].step()
            steppers[parameter].zero_grad()

        for parameter in steppers:
            parameter.register_post_accumulate_grad_hook(step)
        for _ in range(4):
            F.cross_entropy(model(X), Y).backward()
            assert all(p.grad is None for p in steppers)
        results.append(model)
    close(*results)


@pytest.mark.parametrize("ours_first", [True, False])
def test_checkpoints_of_weights_only(ours_first):
    """Model and optimizer by torch.load's default, in either direction; whole models by name."""
    first, second = twins() if ours_first else reversed(twins())
    optimizer = optimizer_of(first)
    train(first, optimizer)
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    second.load_state_dict(loaded["model"])
    other = optimizer_of(second)
    other.load_state_dict(loaded["optimizer"])
    close(train(second, other), train(first, optimizer))

    file = io.BytesIO()
    own = mlp_ext.nn.MLP([6, 4, 3])
    torch.save(own, file)
    file.seek(0)
    with torch.serialization.safe_globals([mlp_ext.nn.MLP, nn.Linear, nn.ReLU]):
        assert_same(torch.load(file, weights_only=True), own, X)


def test_deferred_initialisation():
    """Built on meta, laid out by to_empty, then initialised: the same numbers as without."""

    def reset(model):
        torch.manual_seed(4)
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        return model

    with torch.device("meta"):
        ours, mlp = fuse(plain_net()), mlp_ext.nn.MLP([6, 4, 3])
        linear = mlp_ext.nn.Linear(6, 3, activation="relu")
    for model in (ours, mlp, linear):
        assert all(p.is_meta for p in model.parameters())
        assert not any(report.fused for report in explain(model))
        reset(model.to_empty(device="cpu"))
        assert all(report.fused for report in explain(model))
    assert_same(ours, reset(plain_net()), X)
    assert_same(mlp, reset(nn.Sequential(*copy.deepcopy(mlp))), X)
    close(linear, reset(nn.Linear(6, 3)))

    skipped = nn.utils.skip_init(mlp_ext.nn.Linear, 6, 3, activation="relu")
    skipped.load_state_dict(linear.state_dict())
    torch.testing.assert_close(skipped(X), linear(X))


def test_values_loaded_into_a_model_on_meta():
    """load_state_dict(assign=True) puts real tensors in the place of those on meta."""
    with torch.device("meta"):
        ours = fuse(plain_net())
    plain = plain_net()
    ours.load_state_dict(copy.deepcopy(plain.state_dict()), assign=True)
    assert_same(ours, plain, X)


def quantized(model: nn.Module, how: str) -> nn.Module:
    ao, engine = torch.ao.quantization, torch.backends.quantized.engine
    if how == "dynamic":
        return ao.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    model = nn.Sequential(ao.QuantStub(), model, ao.DeQuantStub())
    if how == "aware of quantization":
        model.qconfig = ao.get_default_qat_qconfig(engine)
        model = ao.prepare_qat(model.train())
        return train(model, torch.optim.SGD(model.parameters(), 0.01)).eval()
    model.qconfig = ao.get_default_qconfig(engine)
    model = ao.prepare(model.eval())
    model(X)
    return ao.convert(model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("how", ["dynamic", "aware of quantization", "prepared and converted"])
def test_quantization_finds_the_layers_of_a_fused_model(how):
    """Its wrappers are children of other classes, or have observers as hooks: left alone."""
    outputs = []
    for model in twins():
        del model[2]  # BatchNorm1d alone has no quantized form
        model[3] = nn.ReLU()
        changed = quantized(copy.deepcopy(model), how)
        assert not any(report.fused for report in explain(changed))
        outputs.append(changed(X))
        assert not torch.equal(outputs[-1], model(X))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


def test_deterministic_algorithms():
    """No operator of ours is refused, and the memory that the mode fills with NaN shows nowhere."""
    torch.use_deterministic_algorithms(True)
    try:
        ours, plain = twins()
        first = train(ours, optimizer_of(ours))
        close(first, train(plain, optimizer_of(plain)))
        again = train(*(lambda m: (m, optimizer_of(m)))(twins()[0]))
        close(again, first, rtol=0, atol=0)
        for activation in mlp_ext.functional.ACTIVATIONS:
            mlp = mlp_ext.nn.MLP([6, 5, 4, 3], activation=activation)
            assert_same(mlp, nn.Sequential(*copy.deepcopy(mlp)), X)
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_default_device_and_dtype():
    """`with torch.device(...)` puts a TorchFunctionMode around every call."""
    results = []
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("cpu"):
            for model in twins():
                assert model[0].weight.dtype == torch.float64
                optimizer = optimizer_of(model)
                for _ in range(3):
                    optimizer.zero_grad()
                    mlp_ext.functional.cross_entropy(model(X.double()), Y).backward()
                    optimizer.step()
                results.append((model.state_dict(), optimizer.state_dict()["state"]))
    finally:
        torch.set_default_dtype(before)
    close(*results, rtol=1e-9, atol=1e-10)
    assert results[0][1][0]["step"].dtype == results[1][1][0]["step"].dtype


@pytest.mark.parametrize("swap", [True, False], ids=["swapped", "overwritten"])
def test_conversion_that_replaces_the_parameters(swap):
    """The two ways of .to() beside the usual one, in the middle of training."""
    future = torch.__future__
    switch = "set_swap_module_params_on_conversion"
    if not swap:
        switch = "set_overwrite_module_params_on_conversion"
    getattr(future, switch)(True)
    try:
        results = []
        for model in twins():
            train(model, optimizer_of(model))
            model.double()
            optimizer = optimizer_of(model)
            for _ in range(3):
                optimizer.zero_grad()
                model(X.double()).square().sum().backward()
                optimizer.step()
            results.append(model)
    finally:
        getattr(future, switch)(False)
    close(*results)


def test_shared_memory():
    """Parameters moved to shared memory, as several processes that train one model want them."""
    results = []
    for model in twins():
        optimizer = optimizer_of(model)
        train(model, optimizer, 2)
        model.share_memory()
        assert all(p.is_shared() for p in model.parameters())
        results.append(train(model, optimizer))
    close(*results)
