"""Loads mlp_ext._C, after checking that this is the torch it was built against.

libtorch has no stable C++ ABI across minor releases. Without this check the user of a stale build
sees "undefined symbol: _ZN3c10...", or a crash later on. Patch releases (2.13.0, 2.13.1) share one.

_build_info.py, which setup.py writes beside the shared object, says what the build was made with.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

_PACKAGE = Path(__file__).resolve().parent
_REINSTALL = "pip install --no-build-isolation --no-deps --force-reinstall"


def _minor(version: str) -> str:
    """'2.13' of '2.13.0+cpu' or '2.13.0a0+git1234'."""
    return ".".join(version.split(".")[:2])


def _in_checkout() -> bool:
    return (_PACKAGE.parent / "setup.py").exists()


def check_build(build_info: ModuleType, torch_version: str, torch_cuda: str | None) -> None:
    """Raise ImportError if the extension that `build_info` describes cannot run under this torch.

    build_info has TORCH_VERSION, and CUDA: torch.version.cuda at build time for an extension with
    CUDA kernels, else None. Without CUDA kernels every flavour of the same minor release will do.
    """
    built, cuda = build_info.TORCH_VERSION, build_info.CUDA
    wanted = f'pip install "torch=={_minor(built)}.*"'
    if _minor(built) == _minor(torch_version) and cuda in (None, torch_cuda):
        return
    if cuda is not None:
        built += f" (CUDA {cuda})"
        torch_version += f" (CUDA {torch_cuda})"
    sources = f"-e {_PACKAGE.parent}" if _in_checkout() else "<folder of the mlp_ext sources>"
    raise ImportError(
        f"mlp_ext was built against torch {built}, but torch {torch_version} is installed: rebuild "
        f"it with `{_REINSTALL} {sources}`, or go back with `{wanted}`."
    )


def _not_built() -> str:
    tag = sys.implementation.cache_tag
    if not _in_checkout():
        return (
            f"the installation of mlp_ext in {_PACKAGE} has no compiled extension for {tag}; "
            f"install it again with `{_REINSTALL} <folder of the mlp_ext sources>`."
        )
    others = ", ".join(sorted(path.name for path in _PACKAGE.glob("_C.*.so")))
    found = f" for this Python ({tag}; there is {others})" if others else ""
    return (
        f"mlp_ext is imported from a source checkout ({_PACKAGE.parent}) in which the extension "
        f"has not been built{found}: run `pip install --no-build-isolation -e .` there. If you "
        "meant an mlp_ext that is installed, start Python from another folder: it looks into the "
        "current one first."
    )


def load() -> ModuleType:
    """mlp_ext._C; ImportError with the remedy if it is missing or made for another torch."""
    info, extension = f"{__package__}._build_info", f"{__package__}._C"
    if any(importlib.util.find_spec(name) is None for name in (info, extension)):
        raise ImportError(_not_built())
    check_build(importlib.import_module(info), str(torch.__version__), torch.version.cuda)
    return importlib.import_module(extension)


_C = load()
