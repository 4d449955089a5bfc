"""The instruction sets: all agree with scalar to rounding, and choosing one never falls back."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from cases import (
    ACTIVATIONS,
    FEW_SHAPES,
    OPTIMIZERS,
    assert_equal_to,
    build,
    dtypes,
    evaluate,
    linear_tensors,
    optimizer_parameters,
    run,
    shapes,
    smooth_grad_output,
)

from mlp_ext import cpu, functional, optim

TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def test_lists():
    compiled, supported = cpu.compiled_isas(), cpu.supported_isas()
    assert "scalar" in supported and set(supported) <= set(compiled)
    assert len(set(compiled)) == len(compiled)
    assert cpu.active_isa() in supported
    assert supported[0] == "scalar"  # ascending order of preference


@shapes(FEW_SHAPES)
@dtypes("f64", "f32", "bf16", "f16")
def test_layers_equal_scalar(isa, dtype, shape):
    for activation in ACTIVATIONS:
        x, w, b = linear_tensors(shape, dtype)
        dy = smooth_grad_output(x, w, b, activation, dtype)

        def layer(x, w, b, activation=activation):
            return functional.linear(x, w, b, activation=activation)

        actual = evaluate(layer, (x, w, b), dy)
        with cpu.use_isa("scalar"):
            expected = evaluate(layer, (x, w, b), dy)
        assert_equal_to(f"{isa} {activation}", actual, expected, TOLERANCE[dtype])


@dtypes("f64", "f32", "bf16", "f16")
@pytest.mark.parametrize("classes", [2, 10, 17, 1000])
def test_cross_entropy_equals_scalar(isa, classes, dtype):
    logits = (3 * torch.randn(33, classes, dtype=torch.float64)).to(dtype)
    target = torch.randint(classes, (33,))
    for options in ({}, {"label_smoothing": 0.1}, {"reduction": "none", "ignore_index": 1}):

        def loss(x, options=options):
            return functional.cross_entropy(x, target, **options)

        dy = torch.ones_like(loss(logits))
        actual = evaluate(loss, (logits,), dy)
        with cpu.use_isa("scalar"):
            expected = evaluate(loss, (logits,), dy)
        assert_equal_to(f"{isa} {options}", actual, expected, TOLERANCE[dtype])


@dtypes("f64", "f32", "bf16", "f16")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_equal_scalar(isa, name, dtype):
    results = []
    for chosen in (isa, "scalar"):
        with cpu.use_isa(chosen):
            params = optimizer_parameters(dtype)
            run(build(optim, name, params), params, range(5))
            results.append({str(i): p.detach() for i, p in enumerate(params)})
    assert_equal_to(isa, *results, TOLERANCE[dtype])


def test_a_graph_may_change_isa_before_backward(isa):
    x, w, b = linear_tensors((13, 33, 17), torch.float64)
    leaves = [t.requires_grad_() for t in (x, w, b)]
    expected = torch.autograd.grad(functional.linear(*leaves, activation="gelu").sum(), leaves)
    for other in cpu.supported_isas():
        out = functional.linear(*leaves, activation="gelu")
        with cpu.use_isa(other):
            grads = torch.autograd.grad(out.sum(), leaves)
        torch.testing.assert_close(grads, expected, rtol=1e-12, atol=1e-12)


def test_use_isa_nests_and_restores():
    before, names = cpu.active_isa(), cpu.supported_isas()
    for outer in names:
        for inner in names:
            with cpu.use_isa(outer):
                with cpu.use_isa(inner):
                    assert cpu.active_isa() == inner
                assert cpu.active_isa() == outer
    assert cpu.active_isa() == before


def test_use_isa_restores_after_an_exception():
    before = cpu.active_isa()
    for name in cpu.supported_isas():
        with pytest.raises(KeyError), cpu.use_isa(name):
            raise KeyError
        assert cpu.active_isa() == before


@pytest.mark.parametrize("name", ["sse9", "", "AVX2", "scalar ", "avx512", "neon"])
def test_an_unknown_or_unsupported_name_is_refused(name):
    if name in cpu.supported_isas():
        pytest.skip(f"{name} is supported here")
    before = cpu.active_isa()
    with pytest.raises(ValueError) as info, cpu.use_isa(name):
        raise AssertionError("the body must not run")
    assert name in str(info.value)
    assert all(known in str(info.value) for known in cpu.supported_isas())
    assert cpu.active_isa() == before


@pytest.mark.parametrize("name", [None, 3, ["avx2"]])
def test_a_name_is_a_string(name):
    with pytest.raises(TypeError), cpu.use_isa(name):
        raise AssertionError("the body must not run")


def test_it_is_a_setting_of_the_process():
    """Work handed to other threads, autograd's among them, runs on the chosen one as well."""
    seen = []
    with cpu.use_isa("scalar"):
        worker = threading.Thread(target=lambda: seen.append(cpu.active_isa()))
        worker.start()
        worker.join()
    assert seen == ["scalar"]


def in_a_new_process(setting, code="import mlp_ext; print(mlp_ext.cpu.active_isa())"):
    environment = {k: v for k, v in os.environ.items() if k != "MLP_EXT_CPU_ISA"}
    if setting is not None:
        environment["MLP_EXT_CPU_ISA"] = setting
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("name", [None, *cpu.supported_isas()])
def test_environment_variable(name):
    done = in_a_new_process(name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (name or cpu.supported_isas()[-1])


UNSUPPORTED = sorted({"avx2", "avx512", "neon"} - set(cpu.supported_isas()))


@pytest.mark.parametrize("name", ["sse9", "SCALAR", *UNSUPPORTED])
def test_bad_environment_variable_is_an_error(name):
    """Not a fallback, and not a crash: an exception that names the value and the choices."""
    code = (
        "import torch, mlp_ext\n"
        "mlp_ext.functional.linear(torch.ones(2, 3), torch.ones(2, 3))\n"
        "print('it ran on', mlp_ext.cpu.active_isa())"
    )
    done = in_a_new_process(name, code)
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert "it ran on" not in done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert name in last and "MLP_EXT_CPU_ISA" in last and "scalar" in last, last
