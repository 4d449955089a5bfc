"""setup.py and the guard of _load.py: what a user meets who has the wrong torch, or none."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils import cpp_extension

import mlp_ext
from mlp_ext import _build_info, _load

ROOT = Path(__file__).resolve().parent.parent


def minor(version):
    return ".".join(version.split(".")[:2])


@pytest.fixture(scope="module")
def setup_py():
    spec = importlib.util.spec_from_file_location("mlp_ext_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_bare(*arguments, path, cwd):
    """Run Python without site-packages, so without torch, but with `path` to import from."""
    return subprocess.run(
        [sys.executable, "-S", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=60,
    )


# ---- setup.py


def test_setup_without_torch_names_the_remedy(tmp_path):
    done = run_bare("setup.py", "--version", path=tmp_path, cwd=ROOT)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "PyTorch is not installed" in done.stderr
    assert "pip install --no-build-isolation ." in done.stderr


def test_setup_in_an_isolated_build_blames_the_isolation(tmp_path):
    isolated = tmp_path / "pip-build-env-x1y2" / "overlay"
    isolated.mkdir(parents=True)
    done = run_bare("setup.py", "egg_info", path=isolated, cwd=ROOT)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "build isolation hides" in done.stderr
    assert "pip install --no-build-isolation ." in done.stderr


def test_setup_refuses_a_torch_that_is_too_old(setup_py, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__="2.10.1+cu128"))
    with pytest.raises(SystemExit, match=r"torch 2\.10\.1\+cu128 is installed, and 2\.11 is the"):
        setup_py.import_torch()


@pytest.mark.parametrize("version", ["2.11.0", "2.13.0+cpu", "2.14.1"])
def test_setup_takes_the_supported_versions_in_silence(setup_py, monkeypatch, capsys, version):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__=version))
    assert setup_py.import_torch().__version__ == version
    assert capsys.readouterr().err == ""


def test_setup_warns_of_a_torch_that_is_too_new(setup_py, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__="2.15.0a0+git12ab"))
    setup_py.import_torch()
    assert "WARNING: torch 2.15.0a0+git12ab is newer than 2.14" in capsys.readouterr().err


def test_setup_says_when_ninja_is_missing(setup_py, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(setup_py.sysconfig, "get_path", lambda name: str(tmp_path))
    setup_py.find_ninja()
    assert "ninja was not found" in capsys.readouterr().err


def test_setup_finds_ninja_beside_a_python_that_is_not_activated(setup_py, monkeypatch, tmp_path):
    ninja = tmp_path / "ninja"
    ninja.write_text("#!/bin/sh\n")
    ninja.chmod(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(setup_py.sysconfig, "get_path", lambda name: str(tmp_path))
    setup_py.find_ninja()
    assert shutil.which("ninja") == str(ninja)


def test_setup_names_a_missing_compiler(setup_py):
    with pytest.raises(SystemExit, match="C\\+\\+ compiler 'no-such-c\\+\\+' was not found"):
        setup_py.check_toolchain(["no-such-c++"])


@pytest.mark.parametrize("name", ["CXX", "CC"])
def test_a_compiler_of_two_words_is_refused(setup_py, monkeypatch, name):
    """torch quotes it as one, and the shell finds no such program."""
    monkeypatch.setenv(name, "ccache g++")
    with pytest.raises(SystemExit, match=f"{name} is 'ccache g\\+\\+'.*script"):
        setup_py.check_toolchain(["c++"])


def test_extension_has_every_source_and_no_flag_for_one_machine(setup_py, monkeypatch):
    monkeypatch.setenv("CFLAGS", "-O1")
    monkeypatch.setenv("CXXFLAGS", "-DUSER='a b'")
    extension = setup_py.make_extension(cpp_extension)
    everywhere = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.cpp")}
    cuda = ("csrc/cuda/", "csrc/bindings/cuda/")  # tests/test_cuda_toolkit.py
    assert set(extension.sources) == {s for s in everywhere if not s.startswith(cuda)}
    assert extension.sources == sorted(extension.sources)
    assert not [
        f for f in extension.extra_compile_args if f.startswith(("-march", "-mtune", "-mavx"))
    ]
    assert extension.extra_compile_args[-2:] == ["-O1", "-DUSER=a b"]  # the user's come last


# ---- the guard


@pytest.mark.parametrize("cuda", [None, "13.0"])
def test_guard_lets_patch_releases_and_flavours_pass(cuda):
    built = SimpleNamespace(TORCH_VERSION="2.13.0+cpu", CUDA=None)
    _load.check_build(built, "2.13.1+cu130", cuda)


@pytest.mark.parametrize("version", ["2.12.1", "2.14.0+cpu", "2.1.3", "3.13.0", "2.130.0"])
def test_guard_names_both_versions_and_the_remedy(version):
    built = SimpleNamespace(TORCH_VERSION="2.13.0+cpu", CUDA=None)
    with pytest.raises(ImportError) as caught:
        _load.check_build(built, version, None)
    message = str(caught.value)
    assert f"built against torch 2.13.0+cpu, but torch {version} is installed" in message
    assert "--no-build-isolation" in message and 'pip install "torch==2.13.*"' in message


@pytest.mark.parametrize("cuda", [None, "12.9"])
def test_guard_minds_the_cuda_version_of_an_extension_with_cuda_kernels(cuda):
    built = SimpleNamespace(TORCH_VERSION="2.13.0+cu130", CUDA="13.0")
    _load.check_build(built, "2.13.0+cu130", "13.0")
    with pytest.raises(ImportError, match=rf"\(CUDA 13\.0\), but torch 2\.13\.0 \(CUDA {cuda}\)"):
        _load.check_build(built, "2.13.0", cuda)


@pytest.fixture
def package(tmp_path):
    """A copy of mlp_ext up to the guard, with a torch 2.13.0 of one line and a _C that shouts."""
    folder = tmp_path / "mlp_ext"
    folder.mkdir()
    for name in ("__init__.py", "_load.py"):
        shutil.copy(ROOT / "mlp_ext" / name, folder / name)
    (folder / "_build_info.py").write_text("TORCH_VERSION = '2.13.0+cpu'\nCUDA = None\n")
    (folder / "_C.py").write_text("raise SystemExit('the shared object was loaded')\n")
    (tmp_path / "torch.py").write_text(
        "from types import SimpleNamespace as N\n__version__ = '2.13.1'\nversion = N(cuda=None)\n"
    )
    return folder


def test_import_loads_the_extension_under_the_right_torch(package):
    done = run_bare("-c", "import mlp_ext", path=package.parent, cwd=package.parent)
    assert "the shared object was loaded" in done.stderr


def test_import_stops_before_the_extension_under_another_torch(package):
    (package / "_build_info.py").write_text("TORCH_VERSION = '2.12.1+cpu'\nCUDA = None\n")
    done = run_bare("-c", "import mlp_ext", path=package.parent, cwd=package.parent)
    assert "the shared object was loaded" not in done.stderr
    assert "ImportError: mlp_ext was built against torch 2.12.1+cpu, but torch 2.13.1 is" in (
        done.stderr
    )


@pytest.mark.parametrize("missing", ["_C.py", "_build_info.py"])
def test_import_from_an_unbuilt_checkout_says_so(package, missing):
    (package / missing).unlink()
    (package.parent / "setup.py").touch()
    (package / "_C.cpython-36m-x86_64-linux-gnu.so").touch()
    done = run_bare("-c", "import mlp_ext", path=package.parent, cwd=package.parent)
    assert f"source checkout ({package.parent})" in done.stderr
    assert "pip install --no-build-isolation -e ." in done.stderr
    assert "there is _C.cpython-36m-x86_64-linux-gnu.so" in done.stderr


# ---- metadata


def test_version_comes_from_one_place():
    assert importlib.metadata.version("mlp_ext") == mlp_ext.__version__
    for name in ("pyproject.toml", "setup.py"):
        assert not re.search(r"^\s*version\s*=\s*[\"']", (ROOT / name).read_text(), re.MULTILINE)


def test_runtime_requirements_are_numpy_and_the_torch_that_was_compiled_against():
    required = [r for r in importlib.metadata.requires("mlp_ext") if "extra ==" not in r]
    assert sorted(required) == ["numpy", f"torch=={minor(_build_info.TORCH_VERSION)}.*"]


def test_build_record_is_of_this_torch_and_of_this_build():
    assert minor(_build_info.TORCH_VERSION) == minor(torch.__version__)
    assert mlp_ext._C.build_info()["torch_version"].startswith(minor(_build_info.TORCH_VERSION))


def pins_of(group):
    found = re.search(rf"^{group} = \[(.*)\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    return set(re.findall(r'"([^"]+)"', found.group(1)))


def test_the_site_is_built_with_pinned_tools_and_the_linters_ruff():
    docs = pins_of("docs")
    assert docs & pins_of("lint") and all("==" in pin for pin in docs)


def test_pre_commit_runs_the_tools_of_make_lint():
    pinned = pins_of("lint")
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert set(re.findall(r"additional_dependencies: \[(.*)\]", hooks)) == pinned
