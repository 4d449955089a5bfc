"""`python -m mlp_ext`: what was built, what runs on this machine, and what is left to PyTorch."""

import importlib
import os
import platform
import textwrap

import torch

from . import __version__, _load, cpu, functional

# As in the docstrings of functional and optim; a kernel that takes more ends a line here.
_LEFT_TO_PYTORCH = (
    "complex and integer dtypes, and tensors of mixed dtypes",
    "sparse, nested, quantized and empty tensors, and subclasses of Tensor",
    "devices other than the CPU",
    "forward-mode differentiation, torch.func transforms, double backward",
    "losses with weights or probabilities that want a gradient, or targets that are broadcast",
    "large calls where PyTorch is faster: in float64 with exponentials, in bfloat16 and float16 on "
    "CPUs where only PyTorch has products for them",
)


def _lines() -> list[tuple[str, str]]:
    """The report: (label, text); a text without a label continues the one above it."""
    build = dict(_load._C.build_info())
    compiled, supported = cpu.compiled_isas(), cpu.supported_isas()
    chosen = os.environ.get("MLP_EXT_CPU_ISA")
    # By name: it is written by setup.py, and mypy runs before there is a build.
    built_cuda = importlib.import_module(f"{__package__}._build_info").CUDA
    if built_cuda is None:
        cuda = "not built: this version has kernels for the CPU only"
    else:
        cuda = f"built for CUDA {built_cuda}; torch sees {torch.cuda.device_count()} device(s)"
    return [
        ("mlp_ext", __version__),
        ("torch", f"{torch.__version__}, built against {build.pop('torch_version')}"),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        *((key.replace("_", " "), str(value)) for key, value in build.items()),
        ("CPU kernels", f"compiled {', '.join(compiled)}"),
        ("", f"this CPU runs {', '.join(supported)}"),
        ("", f"active {cpu.active_isa()}{f' (MLP_EXT_CPU_ISA={chosen})' if chosen else ''}"),
        ("CUDA kernels", cuda),
        ("threads", f"{torch.get_num_threads()} (torch.set_num_threads)"),
        ("activations", ", ".join(functional.ACTIVATIONS)),
        ("dtypes", "float32, float64; bfloat16, float16 with sums in float32"),
        *(("" if i else "left to PyTorch", text) for i, text in enumerate(_LEFT_TO_PYTORCH)),
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
