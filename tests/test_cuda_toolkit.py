"""setup.py's search for CUDA, among toolkits and torch builds that are made up."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parent.parent
HEADERS = ("cuda_runtime_api.h", "cublas_v2.h", "cublasLt.h", "cusparse.h", "cusolverDn.h")


@pytest.fixture(scope="module")
def setup_py():
    spec = importlib.util.spec_from_file_location("mlp_ext_setup_cuda", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cuda_toolkit(setup_py):
    return setup_py.cuda_toolkit


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch, cuda_toolkit, tmp_path):
    """No toolkit, no pip package of CUDA and no variable of the user's."""
    for name in ("CUDA_HOME", "CUDA_PATH", "MLP_EXT_CUDA", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr(cuda_toolkit, "pip_folders", lambda pattern: [])
    monkeypatch.setattr(cuda_toolkit, "USUAL_HOME", str(tmp_path / "nothing"))


def make_nvcc(path, home, version="13.0.88"):
    """A script in the place of nvcc; `home` is what it takes for its own folder."""
    release = ".".join(version.split(".")[:2])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = --version ]; then echo "Cuda tools, release {release}, V{version}"\n'
        f'else echo "#$ TOP={home}/bin/.." >&2; fi\n'
    )
    path.chmod(0o755)


@pytest.fixture
def make_toolkit(tmp_path):
    def make(name="cuda-13.0", version="13.0.88", headers=HEADERS, layout="include"):
        home = tmp_path / name
        make_nvcc(home / "bin" / "nvcc", home, version)
        (home / layout).mkdir(parents=True)
        for header in headers:
            (home / layout / header).touch()
        (home / "lib64").mkdir()
        return home

    return make


@pytest.fixture
def with_kernels(monkeypatch, setup_py, tmp_path):
    """A source tree with a .cu, whatever the real one has."""
    for name in ("cuda/sub/rule.cu", "cpu/gemm.cpp", "bindings/op.cpp", "bindings/cuda/op.cpp"):
        path = tmp_path / "tree" / "csrc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setattr(setup_py, "ROOT", tmp_path / "tree")


def torch_of(cuda="13.0"):
    gpus = SimpleNamespace(device_count=lambda: 0)
    return SimpleNamespace(__version__="2.14.1", version=SimpleNamespace(cuda=cuda), cuda=gpus)


# ---- which nvcc


def test_cuda_home_comes_before_path(cuda_toolkit, make_toolkit, monkeypatch):
    one, other = make_toolkit("one", "13.0.88"), make_toolkit("other", "12.9.41")
    monkeypatch.setenv("PATH", str(one / "bin"))
    assert cuda_toolkit.find_nvcc().home == one
    monkeypatch.setenv("CUDA_HOME", str(other))
    found = cuda_toolkit.find_nvcc()
    assert (found.home, found.version, found.release) == (other, (12, 9, 41), "12.9")


def test_a_cuda_home_without_nvcc_is_not_passed_over(cuda_toolkit, make_toolkit, monkeypatch):
    monkeypatch.setenv("PATH", str(make_toolkit() / "bin"))
    monkeypatch.setenv("CUDA_HOME", "/no/such/folder")
    with pytest.raises(cuda_toolkit.NoCuda, match=r"no nvcc in /no/such/folder/bin \(CUDA_HOME\)"):
        cuda_toolkit.find_nvcc()


def test_a_script_on_path_leads_to_the_toolkit_behind_it(
    cuda_toolkit, make_toolkit, monkeypatch, tmp_path
):
    home = make_toolkit()
    make_nvcc(tmp_path / "local" / "bin" / "nvcc", home)
    monkeypatch.setenv("PATH", str(tmp_path / "local" / "bin"))
    assert cuda_toolkit.find_nvcc().home == home


def test_an_nvcc_that_does_not_run_is_named_with_what_it_says(cuda_toolkit, monkeypatch, tmp_path):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'cannot find libnvvm' >&2\nexit 1\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(cuda_toolkit.NoCuda, match="nvcc does not work: cannot find libnvvm"):
        cuda_toolkit.find_nvcc()


def test_nvcc_from_pip_is_found(cuda_toolkit, make_toolkit, monkeypatch):
    home = make_toolkit("nvidia/cu13")
    monkeypatch.setattr(cuda_toolkit, "pip_folders", lambda pattern: [home / pattern])
    assert cuda_toolkit.find_nvcc().home == home


def test_pip_folders_are_those_below_the_package_nvidia(setup_py, tmp_path):
    for name in ("cu13/include", "cudnn/include", "nccl/lib"):
        (tmp_path / "nvidia" / name).mkdir(parents=True)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import cuda_toolkit\n"
        "print(*cuda_toolkit.pip_folders('include'))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, str(ROOT / "csrc" / "cuda")],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    folders = [tmp_path / "nvidia" / name / "include" for name in ("cu13", "cudnn")]
    assert done.stdout.split() == list(map(str, folders)), done.stderr


# ---- headers and libraries


def test_headers_that_the_toolkit_lacks_come_from_pip_and_after_its_own(
    cuda_toolkit, make_toolkit, monkeypatch, tmp_path
):
    home = make_toolkit(headers=HEADERS[:1])
    pip = [
        tmp_path / "nvidia" / name / "include" for name in ("cublas", "cusolver", "cusparse", "x")
    ]
    for folder, headers in zip(pip, (HEADERS[1:3], HEADERS[4:], HEADERS[3:4], ()), strict=True):
        folder.mkdir(parents=True)
        for header in (*headers, HEADERS[0]):
            (folder / header).touch()
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setattr(cuda_toolkit, "pip_folders", lambda pattern: pip)
    folders, missing = cuda_toolkit.include_dirs(cuda_toolkit.toolkit_for("2.14.1", "13.0"))
    assert missing == []
    assert folders == [home / "include", pip[0], pip[2], pip[1]]


def test_conda_has_its_headers_below_targets(cuda_toolkit, make_toolkit, monkeypatch):
    layout = f"targets/{cuda_toolkit.platform.machine()}-linux/include"
    home = make_toolkit(layout=layout)
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert cuda_toolkit.include_dirs(cuda_toolkit.find_nvcc()) == ([home / layout], [])


# ---- the decision


@pytest.mark.parametrize(
    ("cuda", "version", "headers", "reason"),
    [
        (None, "13.0.88", HEADERS, r"torch 2\.14\.1 is not a CUDA build"),
        ("13.0", None, HEADERS, "there is no nvcc in "),
        ("12.4", "12.3.107", HEADERS, r"nvcc is of CUDA 12\.3, and 12\.4 is the oldest"),
        ("13.0", "12.9.41", HEADERS, r"CUDA 12\.9, and torch 2\.14\.1 of CUDA 13\.0: the major"),
        ("13.0", "13.0.88", HEADERS[:3], r"has the headers cusparse\.h, cusolverDn\.h"),
    ],
    ids=["torch without CUDA", "no nvcc", "old nvcc", "another major", "headers missing"],
)
def test_what_is_missing_is_an_error_or_a_notice(
    setup_py,
    make_toolkit,
    with_kernels,
    monkeypatch,
    capsys,
    tmp_path,
    cuda,
    version,
    headers,
    reason,
):
    if set(headers) < set(HEADERS) and Path("/usr/include/cusparse.h").exists():
        pytest.skip("/usr/include has them")
    home = tmp_path / "none" if version is None else make_toolkit("t", version, headers)
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setenv("MLP_EXT_CUDA", "1")
    with pytest.raises(SystemExit, match=f"MLP_EXT_CUDA=1 asks for CUDA kernels, but .*{reason}"):
        setup_py.find_cuda(torch_of(cuda))
    assert capsys.readouterr().err == ""

    monkeypatch.delenv("MLP_EXT_CUDA")
    toolkit, why_not = setup_py.find_cuda(torch_of(cuda))
    assert toolkit is None and re.search(reason, why_not)
    said = capsys.readouterr().err
    if cuda is None:
        assert said == ""
    else:
        assert re.search(f"NOTICE: building for the CPU only, because .*{reason}", said)


def test_it_is_built_when_all_is_there(setup_py, make_toolkit, with_kernels, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_HOME", str(make_toolkit(version="13.2.3")))
    for wish in ("1", ""):
        monkeypatch.setenv("MLP_EXT_CUDA", wish)
        toolkit, why_not = setup_py.find_cuda(torch_of("13.0"))
        assert (toolkit.release, why_not) == ("13.2", None)
    monkeypatch.setenv("MLP_EXT_CUDA", "0")
    assert setup_py.find_cuda(torch_of("13.0")) == (None, "MLP_EXT_CUDA=0")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("wish", ["2", "yes", "true", " 1"])
def test_another_wish_is_an_error(setup_py, monkeypatch, wish):
    monkeypatch.setenv("MLP_EXT_CUDA", wish)
    with pytest.raises(SystemExit, match=f"MLP_EXT_CUDA is '{wish}'"):
        setup_py.find_cuda(torch_of())


def test_a_source_without_kernels(setup_py, make_toolkit, monkeypatch, tmp_path):
    monkeypatch.setattr(setup_py, "ROOT", tmp_path)
    monkeypatch.setenv("CUDA_HOME", str(make_toolkit()))
    assert setup_py.find_cuda(torch_of())[0] is None
    monkeypatch.setenv("MLP_EXT_CUDA", "1")
    with pytest.raises(SystemExit, match="this source has no CUDA kernels"):
        setup_py.find_cuda(torch_of())


# ---- what follows from it


def test_the_extension_with_and_without_cuda(setup_py, make_toolkit, with_kernels, monkeypatch):
    home = make_toolkit()
    monkeypatch.setenv("CUDA_HOME", str(home))
    without = setup_py.make_extension(cpp_extension)
    assert without.sources == ["csrc/bindings/op.cpp", "csrc/cpu/gemm.cpp"]
    assert without.define_macros == []
    extension = setup_py.make_extension(cpp_extension, setup_py.cuda_toolkit.find_nvcc())
    more = {"csrc/bindings/cuda/op.cpp", "csrc/cuda/sub/rule.cu"}
    assert extension.sources == sorted({*without.sources, *more})
    assert ("MLP_EXT_WITH_CUDA", None) in extension.define_macros
    assert extension.extra_compile_args["cxx"] == without.extra_compile_args
    assert str(home / "include") in extension.include_dirs
    assert str(home / "lib64") in extension.library_dirs
    assert {"gomp", "torch_cuda", "c10_cuda", ":libcudart.so.13"} <= set(extension.libraries)


def test_torch_still_adds_the_flags_for_the_gpus(setup_py, monkeypatch):
    """It adds none if it finds the word "arch" among ours."""
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", setup_py.cuda_toolkit.DEFAULT_ARCHS)
    flags = cpp_extension._get_cuda_arch_flags(setup_py.cuda_toolkit.NVCC_FLAGS)
    made = ["sm_80", "compute_80", "sm_90a"]
    assert sorted(flag.rpartition("code=")[2] for flag in flags) == sorted(made)
    toolkit = SimpleNamespace(version=(13, 0, 88))
    values = setup_py.cuda_build_info(torch_of(), cpp_extension, toolkit, None)
    assert values["CUDA"] == "13.0" and values["NVCC"] == "13.0.88"
    assert sorted(values["CUDA_ARCHS"]) == sorted(made)
    values = setup_py.cuda_build_info(torch_of(), cpp_extension, None, "there is no nvcc")
    assert values == {"CUDA": None, "WITHOUT_CUDA": "there is no nvcc"}


@pytest.mark.parametrize(
    ("archs", "kept", "too_old"),
    [
        ("", "", []),
        ("8.0+PTX;9.0a", "8.0+PTX;9.0a", []),
        ("7.0 7.5 8.0 9.0+PTX", "8.0;9.0+PTX", ["7.0", "7.5"]),
        ("Volta;Ampere", "Ampere", ["Volta"]),
        ("12.0;10.3a;banana", "12.0;10.3a;banana", []),  # torch says what it does not know
    ],
)
def test_gpus_that_are_too_old_are_left_out(cuda_toolkit, archs, kept, too_old):
    assert cuda_toolkit.usable_archs(archs, 0) == (kept, too_old)


def test_a_list_without_a_gpu_to_build_for(cuda_toolkit):
    for archs in ("7.5", "Turing;7.0+PTX"):
        with pytest.raises(cuda_toolkit.NoCuda, match=r"8\.0 is the oldest"):
            cuda_toolkit.usable_archs(archs, 0)
    with pytest.raises(cuda_toolkit.NoCuda, match="sees no GPU"):
        cuda_toolkit.usable_archs("native", 0)
    assert cuda_toolkit.usable_archs("native", 1) == ("native", [])


def test_the_list_that_is_built_for(setup_py, make_toolkit, with_kernels, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_HOME", str(make_toolkit()))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.0;8.6")
    assert setup_py.find_cuda(torch_of("13.0"))[0] is not None
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "8.6"
    assert "not for GPUs of 7.0" in capsys.readouterr().err
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.0")
    monkeypatch.setenv("MLP_EXT_CUDA", "1")
    with pytest.raises(SystemExit, match="8.0 is the oldest"):
        setup_py.find_cuda(torch_of("13.0"))


def test_no_two_sources_share_an_object_file():
    """setuptools makes a.o of a.cpp and of a.cu."""
    sources = [p for suffix in ("*.cpp", "*.cu") for p in (ROOT / "csrc").rglob(suffix)]
    stems = [path.with_suffix("") for path in sources]
    assert len(stems) == len(set(stems))
