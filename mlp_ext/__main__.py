"""`python -m mlp_ext`: what was built, what runs on this machine, and what is left to PyTorch."""

import importlib
import os
import platform
import textwrap
from collections.abc import Iterable
from types import ModuleType

import torch

from . import __version__, _load, cpu, functional

# As in the docstrings of functional and optim; a kernel that takes more ends a line here.
_LEFT_TO_PYTORCH = (
    "complex and integer dtypes, and tensors of mixed dtypes",
    "sparse, nested, quantized and empty tensors, and subclasses of Tensor",
    f"devices other than {' and '.join(_load._C.DEVICES)}",
    "forward-mode differentiation, torch.func transforms, double backward",
    "losses with weights or probabilities that want a gradient, or targets that are broadcast",
    "what other code has patched, hooked or watches: functions and classes of torch, modes, traces",
    "optimizers that are differentiable, sparse gradients, and options that PyTorch refuses",
    "large calls on the CPU where PyTorch is faster: in float64 with exponentials, in bfloat16 and "
    "float16 on CPUs where only PyTorch has products for them",
)


def _covered(archs: Iterable[str], capability: tuple[int, int]) -> str | None:
    """What a GPU of this capability runs of a library for `archs`, or None. Names are nvcc's: sm_80
    is machine code, for this and later minors; compute_80 is PTX, for all that is later; either
    with an `a` is for that very capability."""
    best = (False, (0, 0), "")
    for arch in archs:
        kind, _, number = arch.partition("_")
        digits = number.rstrip("a")
        made_for, machine_code = (int(digits[:-1]), int(digits[-1])), kind == "sm"
        same = made_for == capability
        later = made_for < capability and not number.endswith("a")
        if same or later and (made_for[0] == capability[0] or not machine_code):
            best = max(best, (machine_code, made_for, arch))
    machine_code, _, arch = best
    if not arch:
        return None
    return arch if machine_code else f"{arch}, which the driver compiles at first use"


def _library_line(version: int | None) -> str:
    """What runs the products that csrc/cuda/cublaslt is for. version: as the library numbers it."""
    if version is None:
        return "cuBLASLt NOT found in torch: every product is ours, in float64 cuBLAS's"
    number = f"{version // 10000}.{version // 100 % 100}.{version % 100}"
    return f"cuBLASLt {number} for large products and float64"


def _cuda_lines(build: ModuleType) -> list[str]:
    """The CUDA kernels in the build, then each GPU and what it runs of them."""
    if build.CUDA is None:
        return [f"not built: {build.WITHOUT_CUDA}"]
    lines = [f"built for CUDA {build.CUDA} by nvcc {build.NVCC}: {', '.join(build.CUDA_ARCHS)}"]
    lines.append(_library_line(_load._C.cublaslt_version()))
    if forced := os.environ.get("MLP_EXT_FORCE"):
        lines.append(f"every product forced by MLP_EXT_FORCE={forced}")
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        found = _covered(build.CUDA_ARCHS, capability)
        number = f"{capability[0]}.{capability[1]}"
        runs = (
            f"runs {found}"
            if found
            else "is NOT covered: add it to TORCH_CUDA_ARCH_LIST and build again"
        )
        lines.append(f"{torch.cuda.get_device_name(index)} ({number}) {runs}")
    return lines if torch.cuda.device_count() > 0 else [*lines, "torch sees no GPU"]


def _lines() -> list[tuple[str, str]]:
    """The report: (label, text); a text without a label continues the one above it."""
    build = dict(_load._C.build_info())
    compiled, supported = cpu.compiled_isas(), cpu.supported_isas()
    chosen = os.environ.get("MLP_EXT_CPU_ISA")
    kc, mc, nc = _load._C.cpu_block_sizes()
    # Of what torch's own code is no longer: sitecustomize and the like may have come before.
    unusual = _load._C.what_is_unusual()
    # By name: it is written by setup.py, and mypy runs before there is a build.
    cuda = _cuda_lines(importlib.import_module(f"{__package__}._build_info"))
    return [
        ("mlp_ext", __version__),
        ("torch", f"{torch.__version__}, built against {build.pop('torch_version')}"),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        *((key.replace("_", " "), str(value)) for key, value in build.items()),
        ("CPU kernels", f"compiled {', '.join(compiled)}"),
        ("", f"this CPU runs {', '.join(supported)}"),
        ("", f"active {cpu.active_isa()}{f' (MLP_EXT_CPU_ISA={chosen})' if chosen else ''}"),
        ("", f"float32 products in blocks of KC {kc}, MC {mc}, NC {nc}, by the host's caches"),
        *(("" if i else "CUDA kernels", text) for i, text in enumerate(cuda)),
        ("threads", f"{torch.get_num_threads()} (torch.set_num_threads)"),
        ("activations", ", ".join(functional.ACTIVATIONS)),
        ("dtypes", "float32, float64; bfloat16, float16 with sums in float32"),
        *(("" if i else "left to PyTorch", text) for i, text in enumerate(_LEFT_TO_PYTORCH)),
        *([("now", f"all of that: {unusual}")] if unusual else []),
    ]


def report() -> str:
    """The text that `python -m mlp_ext` prints, without a final newline."""
    lines = _lines()
    width = max(len(label) for label, _ in lines) + 2
    return "\n".join(
        textwrap.fill(
            text,
            width=100,
            initial_indent=f"{label:<{width}}",
            subsequent_indent=" " * width,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for label, text in lines
    )


if __name__ == "__main__":
    print(report())
