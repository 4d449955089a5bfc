"""What can be asked of the real cuBLASLt without a GPU: that it is found in torch, and takes the
descriptions of products that csrc/cuda/cublaslt makes. (What they compute is tested on a stand-in,
tests/simt/run_lt_gemm.cpp, and on a GPU by tests/cuda.)"""

import importlib.util
import subprocess
from pathlib import Path

import pytest
import torch

from mlp_ext import _load

ROOT = Path(__file__).resolve().parents[1]
needs_cuda_torch = pytest.mark.skipif(torch.version.cuda is None, reason="needs torch with CUDA")


def toolkit_module():
    path = ROOT / "csrc" / "cuda" / "cuda_toolkit.py"
    spec = importlib.util.spec_from_file_location("cuda_toolkit_of_tests", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_cuda_torch
@pytest.mark.skipif("cuda" not in _load._C.DEVICES, reason="needs a build with CUDA")
def test_the_library_is_found_in_torch():
    major = int(torch.version.cuda.split(".")[0])
    assert _load._C.cublaslt_version() // 10000 == major


@pytest.mark.skipif("cuda" in _load._C.DEVICES, reason="needs a build without CUDA")
def test_a_build_without_cuda_has_none():
    assert _load._C.cublaslt_version() is None


@needs_cuda_torch
def test_the_library_takes_our_descriptions(tmp_path):
    cuda = toolkit_module()
    folders = cuda.pip_folders("include"), cuda.pip_folders("lib")
    libraries = [lib for folder in folders[1] for lib in folder.glob("libcublasLt.so.*")]
    if not libraries or not any((f / "cublasLt.h").exists() for f in folders[0]):
        pytest.skip("needs cuBLAS from pip: its header and its library")
    program, source = tmp_path / "describe", Path(__file__).parent / "cublaslt_describe.cpp"
    options = ["-std=c++20", "-Wall", "-Wextra", "-Werror"]
    options += [f"-I{folder}" for folder in folders[0]]
    linked = [str(libraries[0]), f"-Wl,-rpath,{libraries[0].parent}", "-ldl"]
    command = ["g++", *options, str(source), "-o", str(program), "-Wl,--no-as-needed", *linked]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith(", 0 refused\n"), done.stdout + done.stderr
