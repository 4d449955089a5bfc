"""Builds mlp_ext with its CUDA half on the host: `python tests/simt/stand_in.py [FOLDER]`.

The whole extension, csrc/bindings/cuda included, with MLP_EXT_ON_HOST: CPU tensors stand for CUDA
tensors, and every launch runs the real kernels as fibers. FOLDER/mlp_ext is the package; with
FOLDER in PYTHONPATH the tests of the public API run on CUDA's code (test_stand_in.py).
"""

import importlib.util
import sys
from pathlib import Path

import torch
from setuptools import Distribution
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "simt" / "stand-in"


def _setup():
    spec = importlib.util.spec_from_file_location("mlp_ext_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _sources(folder):
    """Those of the CPU build, the CUDA bindings, and the kernels as C++."""
    csrc = ROOT / "csrc"
    yield from sorted(csrc.rglob("*.cpp"))
    yield from (ROOT / "tests" / "simt" / name for name in ("scheduler.cpp", "cublaslt_host.cpp"))
    wrappers = folder / "wrappers"
    wrappers.mkdir(exist_ok=True)
    for kernel in sorted((csrc / "cuda").rglob("*.cu")):
        wrapper = wrappers / f"{kernel.stem}_on_host.cpp"
        text = f'#include "{kernel}"\n'
        if not wrapper.exists() or wrapper.read_text() != text:
            wrapper.write_text(text)
        yield wrapper


def build(folder):
    """Makes FOLDER/mlp_ext; what is up to date is kept."""
    setup = _setup()
    setup.find_ninja()
    folder.mkdir(parents=True, exist_ok=True)
    package = folder / "mlp_ext"
    package.mkdir(exist_ok=True)
    for link in package.iterdir():
        if link.is_symlink():
            link.unlink()
    for item in (ROOT / "mlp_ext").iterdir():
        if item.is_dir() or (item.suffix == ".py" and item.name != "_build_info.py"):
            (package / item.name).symlink_to(item)
    extension = cpp_extension.CppExtension(
        "mlp_ext._C",
        [str(path) for path in _sources(folder)],
        include_dirs=[str(ROOT / "csrc"), str(ROOT / "tests" / "simt")],
        define_macros=[("MLP_EXT_WITH_CUDA", None), ("MLP_EXT_ON_HOST", None)],
        extra_compile_args=[*setup.CXX_FLAGS, "-O1"],  # the last of two -O counts
        libraries=["gomp"],
    )
    distribution = Distribution({"name": "mlp_ext", "ext_modules": [extension]})
    command = cpp_extension.BuildExtension(distribution)
    command.build_lib, command.build_temp = str(folder), str(folder / "objects")
    command.force = True  # ninja decides what to compile
    command.ensure_finalized()
    command.run()
    setup.write_build_info(
        package / "_build_info.py",
        torch,
        cpp_extension.get_cxx_compiler().split(),
        {"CUDA": None, "WITHOUT_CUDA": "its kernels run on the host (tests/simt)"},
    )


if __name__ == "__main__":
    build(Path(sys.argv[1]).resolve() if sys.argv[1:] else FOLDER)
