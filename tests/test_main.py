"""`python -m mlp_ext` and mlp_ext.cpu."""

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import mlp_ext
from mlp_ext import __main__ as main


def run(**environment: str) -> subprocess.CompletedProcess:
    clean = {key: value for key, value in os.environ.items() if key != "MLP_EXT_CPU_ISA"}
    command = [sys.executable, "-m", "mlp_ext"]
    return subprocess.run(command, capture_output=True, text=True, env=clean | environment)


@pytest.fixture(scope="module")
def printed() -> str:
    done = run()
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def row(text: str, label: str) -> str:
    """What stands behind `label`, continuation lines included."""
    rows = iter(text.splitlines())
    found = [next(line for line in rows if line.startswith(f"{label} "))[len(label) :]]
    for line in rows:
        if not line.startswith(" "):
            break
        found.append(line)
    return "\n".join(line.strip() for line in found)


def test_report_names_versions(printed):
    assert row(printed, "mlp_ext") == mlp_ext.__version__
    assert row(printed, "torch").startswith(f"{torch.__version__}, built against ")
    assert row(printed, "Python").startswith(platform.python_version())


def test_report_names_isas(printed):
    compiled, runs, active, blocks = row(printed, "CPU kernels").splitlines()
    assert compiled == f"compiled {', '.join(mlp_ext.cpu.compiled_isas())}"
    assert runs == f"this CPU runs {', '.join(mlp_ext.cpu.supported_isas())}"
    assert active == f"active {mlp_ext.cpu.supported_isas()[-1]}"
    assert blocks.startswith("float32 products in blocks of KC ")


def test_report_names_build_and_abilities(printed):
    assert row(printed, "compiler")
    assert row(printed, "CUDA kernels").startswith(("not built: ", "built for CUDA "))
    assert int(row(printed, "threads").split()[0]) >= 1
    listed = row(printed, "activations").replace("\n", " ").split(", ")
    assert listed == list(mlp_ext.functional.ACTIVATIONS)
    assert "float32" in row(printed, "dtypes")
    assert "complex" in row(printed, "left to PyTorch")


def test_report_is_plain_text_of_limited_width(printed):
    assert printed.isascii()
    assert max(map(len, printed.splitlines())) <= 100
    assert not any(line != line.rstrip() for line in printed.splitlines())


BOTH = ["sm_80", "compute_80", "sm_90a"]


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        (BOTH, (9, 0), "sm_90a"),
        (BOTH, (8, 0), "sm_80"),
        (BOTH, (8, 9), "sm_80"),
        (BOTH, (12, 0), "compute_80, which the driver compiles at first use"),
        (BOTH, (7, 5), None),
        (["sm_80", "sm_86", "sm_89"], (8, 7), "sm_86"),
        (["sm_80"], (9, 0), None),
        (["sm_90a", "compute_90a"], (10, 0), None),
        (["sm_100"], (10, 3), "sm_100"),
        (["sm_103"], (10, 0), None),
        (["sm_100", "compute_100"], (12, 1), "compute_100, which the driver compiles at first use"),
    ],
)
def test_which_gpu_runs_what(archs, capability, runs):
    assert main._covered(archs, capability) == runs


def test_report_of_a_build_with_cuda(monkeypatch):
    build = SimpleNamespace(CUDA="13.0", NVCC="13.0.88", CUDA_ARCHS=BOTH)
    head = "built for CUDA 13.0 by nvcc 13.0.88: sm_80, compute_80, sm_90a"
    library = "cuBLASLt 13.1.1 for large products and float64"
    monkeypatch.setattr(main._load._C, "cublaslt_version", lambda: 130101)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main._cuda_lines(build) == [head, library, "torch sees no GPU"]
    gpus = [("NVIDIA H100", (9, 0)), ("Tesla T4", (7, 5))]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: gpus[i][0])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: gpus[i][1])
    assert main._cuda_lines(build) == [
        head,
        library,
        "NVIDIA H100 (9.0) runs sm_90a",
        "Tesla T4 (7.5) is NOT covered: add it to TORCH_CUDA_ARCH_LIST and build again",
    ]


def test_report_says_that_a_library_is_missing():
    assert "NOT found" in main._library_line(None)


def test_report_of_a_build_without_cuda_says_why():
    build = SimpleNamespace(CUDA=None, WITHOUT_CUDA="there is no nvcc on PATH")
    assert main._cuda_lines(build) == ["not built: there is no nvcc on PATH"]


@pytest.mark.parametrize("isa", mlp_ext.cpu.supported_isas())
def test_environment_variable_chooses_the_isa(isa):
    done = run(MLP_EXT_CPU_ISA=isa)
    assert done.returncode == 0, done.stderr
    assert (
        row(done.stdout, "CPU kernels").splitlines()[2] == f"active {isa} (MLP_EXT_CPU_ISA={isa})"
    )


def test_unknown_isa_in_the_environment_is_an_error():
    done = run(MLP_EXT_CPU_ISA="mmx")
    assert done.returncode != 0
    assert "mmx" in done.stderr and "scalar" in done.stderr


def test_isas_are_ordered_subsets():
    compiled, supported = mlp_ext.cpu.compiled_isas(), mlp_ext.cpu.supported_isas()
    assert "scalar" in supported and set(supported) <= set(compiled)
    assert mlp_ext.cpu.active_isa() in supported


def test_use_isa_switches_and_restores():
    before = mlp_ext.cpu.active_isa()
    for isa in mlp_ext.cpu.supported_isas():
        with mlp_ext.cpu.use_isa(isa):
            assert mlp_ext.cpu.active_isa() == isa
            with mlp_ext.cpu.use_isa("scalar"):
                assert mlp_ext.cpu.active_isa() == "scalar"
            assert mlp_ext.cpu.active_isa() == isa
        assert mlp_ext.cpu.active_isa() == before


def test_use_isa_restores_after_an_exception():
    before = mlp_ext.cpu.active_isa()
    with pytest.raises(KeyError, match="inside"), mlp_ext.cpu.use_isa("scalar"):
        raise KeyError("inside")
    assert mlp_ext.cpu.active_isa() == before


def test_use_isa_refuses_what_is_not_there():
    before = mlp_ext.cpu.active_isa()
    with pytest.raises(ValueError, match="mmx.*scalar"), mlp_ext.cpu.use_isa("mmx"):
        pytest.fail("the body must not run")
    with pytest.raises(TypeError), mlp_ext.cpu.use_isa(None):
        pytest.fail("the body must not run")
    assert mlp_ext.cpu.active_isa() == before


def test_report_names_what_is_forced(monkeypatch):
    build = SimpleNamespace(CUDA="13.0", NVCC="13.0.88", CUDA_ARCHS=BOTH)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("MLP_EXT_FORCE", "own")
    assert "every product forced by MLP_EXT_FORCE=own" in main._cuda_lines(build)


def test_report_names_what_is_patched(monkeypatch, printed):
    assert "patched (by" not in printed
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, w, b=None: x)
    found = row(main.report(), "now").replace("\n", " ")
    assert found.startswith("all of that: torch.nn.functional.linear is patched (by ")


def test_products_can_be_forced():
    """Read from the environment at import, where there are kernels for CUDA; set by tests."""
    force = mlp_ext._load._C.force_products
    before = force("")
    try:
        for text in ("128x128,4", "32x128,65535", "library", "own", ""):
            force(text)
            assert force(text) == text
        force("own")
        for text in ("128x128", "9x9,1", "64x64,0", "64x64,65536", "64x64,2x", "Own", ","):
            with pytest.raises(ValueError, match="is no plan for a product: expected tile,split"):
                force(text)
            assert force("own") == "own"
    finally:
        force(before)
    done = run(MLP_EXT_FORCE="9x9,1")
    assert (done.returncode != 0) == ("cuda" in mlp_ext._load._C.DEVICES)
    assert done.returncode == 0 or "MLP_EXT_FORCE: '9x9,1' is no plan" in done.stderr
