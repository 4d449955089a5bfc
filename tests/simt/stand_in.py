"""Builds mlp_ext with its CUDA half on the host: `python tests/simt/stand_in.py [FOLDER]`.

The whole extension, csrc/bindings/cuda included, with MLP_EXT_ON_HOST: CPU tensors stand for CUDA
tensors, and every launch runs the real kernels as fibers. FOLDER/mlp_ext is the package; with
FOLDER in PYTHONPATH the tests of the public API run on CUDA's code (`make check-cuda-stand-in`).
"""

import importlib.util
import sys
from pathlib import Path

import torch
from host_build import ROOT, included
from setuptools import Distribution
from torch.utils import cpp_extension

FOLDER = ROOT / "build" / "simt" / "stand-in"
MACROS = ("MLP_EXT_WITH_CUDA", "MLP_EXT_ON_HOST")


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


def _object_of_cpu_build(source, objects):
    """That of the extension in mlp_ext/, where it is up to date and sees none of MACROS."""
    if ROOT / "csrc" not in source.parents:
        return None
    files = included(source)
    if any(macro in file.read_text() for file in files for macro in MACROS):
        return None
    made = (objects / source.relative_to(ROOT)).with_suffix(".o")
    newest = max(file.stat().st_mtime for file in files)
    return made if made.exists() and made.stat().st_mtime > newest else None


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
    cpu_build = setup.make_build_ext(torch, cpp_extension, None, "")(Distribution())
    cpu_build.ensure_finalized()
    objects = Path(cpu_build.build_temp)
    at_hand = {path: _object_of_cpu_build(path, objects) for path in _sources(folder)}
    extension = cpp_extension.CppExtension(
        "mlp_ext._C",
        [str(path) for path, made in at_hand.items() if not made],
        extra_objects=[str(made) for made in at_hand.values() if made],
        include_dirs=[str(ROOT / "csrc"), str(ROOT / "tests" / "simt")],
        define_macros=[(macro, None) for macro in MACROS],
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
