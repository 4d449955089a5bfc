"""Fixtures: a fixed seed and one thread for every test; each instruction set of this host."""

import pytest
import torch

import mlp_ext


def pytest_addoption(parser):
    text = "of the tests that run on each instruction set, those of this CPU's best alone"
    parser.addoption("--best-isa", action="store_true", help=text)


def pytest_collection_modifyitems(config, items):
    if config.getoption("--best-isa"):
        best = mlp_ext.cpu.supported_isas()[-1]
        isas = [getattr(item, "callspec", None) for item in items]
        isas = [best if spec is None else spec.params.get("isa", best) for spec in isas]
        others = [item for item, isa in zip(items, isas, strict=True) if isa != best]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item, isa in zip(items, isas, strict=True) if isa == best]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(2026)


@pytest.fixture(autouse=True)
def one_thread():
    """PyTorch splits even tiny tensors between threads, and on busy cores each such call waits
    milliseconds for the other thread: the suite takes ten times as long. Tests of threads ask for
    `threads`."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1, 2], ids="threads{}".format)
def threads(request, one_thread):
    """Runs the test with one and with two threads; the value is the number."""
    torch.set_num_threads(request.param)
    return request.param


def isas_with_kernels_of_their_own():
    """avx512_bf16 is avx512 and bfloat16 products; without these, bfloat16 goes the road that it
    goes on avx2. So where this CPU has both, the one with them stands for both."""
    isas = mlp_ext.cpu.supported_isas()
    return [isa for isa in isas if isa != "avx512" or "avx512_bf16" not in isas]


@pytest.fixture(params=isas_with_kernels_of_their_own())
def isa(request):
    """Runs the test once on each instruction set that this CPU supports; the value is its name."""
    with mlp_ext.cpu.use_isa(request.param):
        assert mlp_ext.cpu.active_isa() == request.param
        yield request.param
