"""Compiles mlp_ext._C, one C++ extension, against the PyTorch that is installed.

Project metadata is in pyproject.toml; here is what has to be computed: the check for torch, the
search for CUDA, the list of sources, the flags, the pin on torch, and mlp_ext/_build_info.py.

No -march and no flags for single files: instruction sets are chosen inside the sources, by target
regions, so that one ordinary build runs on every CPU. A new .cpp below SOURCE_FOLDERS is found by
itself, and so is a new .cu or .cpp below csrc/cuda.

The CUDA half (csrc/cuda, csrc/bindings/cuda, the macro MLP_EXT_WITH_CUDA) is compiled where
torch is a CUDA build and an nvcc for it is found; no GPU is needed. In the environment:
    MLP_EXT_CUDA           0: without; 1: with, or an error that says what is missing
    CUDA_HOME              the toolkit, where there are several
    TORCH_CUDA_ARCH_LIST   the GPUs to compile for, as torch spells them
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT / "csrc" / "cuda"), str(ROOT / "csrc" / "build_tools")]
import cuda_toolkit  # noqa: E402
from precompiled_header import PrecompiledHeader  # noqa: E402
from progress import Progress  # noqa: E402

TORCH_OLDEST, TORCH_NEWEST = (2, 11), (2, 14)  # minor releases that this source is made for
SOURCE_FOLDERS = ("common", "cpu", "step", "bindings")

CXX_FLAGS = [
    "-std=c++20",  # for std::span; torch 2.11 would add C++17
    "-O3",
    "-g0",  # Python's own flags often have -g: ten times the bytes for objects full of templates
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",  # thousands of them in headers of torch
    "-Wno-unknown-pragmas",
    # Nothing here reads errno or the floating-point status flags; keeping them right stops the
    # compiler from vectorising loops with a sqrt or a division under a condition.
    "-fno-math-errno",
    "-fno-trapping-math",
    # Kernels ask for fma by name. Left to themselves GCC and clang contract in different places,
    # and two builds of one source differ in their last bits.
    "-ffp-contract=off",
    # torch's headers then include the operators that they call, and not all two thousand: a fifth
    # of the precompiled header.
    "-DAT_PER_OPERATOR_HEADERS",
]


def notice(text):
    print(f"mlp_ext: {text}", file=sys.stderr)


def fail(text):
    raise SystemExit(f"\nmlp_ext cannot be built: {text}\n")


def dotted(version):
    return ".".join(map(str, version))


def torch_minor(version):
    """(2, 13) of "2.13.0+cpu"."""
    return tuple(int(part) for part in re.match(r"(\d+)\.(\d+)", version).groups())


def import_torch():
    """The installed torch; SystemExit if there is none or it is too old, a warning if too new."""
    wanted = f'"torch>={dotted(TORCH_OLDEST)},<{TORCH_NEWEST[0]}.{TORCH_NEWEST[1] + 1}"'
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        # pip makes its isolated environment below a folder of this name, uv below the other.
        paths = [sys.prefix, *sys.path]
        isolated = any("pip-build-env" in path or "builds-v0" in path for path in paths)
        why = (
            "PyTorch is out of sight, because build isolation hides every installed package."
            if isolated
            else f"PyTorch is not installed for {sys.executable}."
        )
        fail(
            f"{why} The extension is compiled against the very torch that it will run under, so "
            "install that first, then build without isolation:\n"
            f'    pip install {wanted} "setuptools>=77.0.3" ninja\n'
            "    pip install --no-build-isolation ."
        )
    found = torch_minor(torch.__version__)
    if found < TORCH_OLDEST:
        fail(
            f"torch {torch.__version__} is installed, and {dotted(TORCH_OLDEST)} is the oldest "
            f"that it works with. Upgrade first:\n    pip install --upgrade {wanted}"
        )
    if found > TORCH_NEWEST:
        notice(
            f"WARNING: torch {torch.__version__} is newer than {dotted(TORCH_NEWEST)}, the newest "
            "that this version of mlp_ext was made for. It may fail to compile, or fail its tests."
        )
    return torch


def find_ninja():
    """Put an installed ninja on PATH; say so if there is none.

    `.venv/bin/pip install` in an environment that is not activated leaves .venv/bin out of PATH,
    and BuildExtension would then fall back without a word.
    """
    scripts = sysconfig.get_path("scripts")
    # This environment's before any other: two that take turns each compile everything.
    if shutil.which("ninja", path=scripts):
        os.environ["PATH"] = os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)])
    if shutil.which("ninja"):
        return
    notice(
        "NOTICE: ninja was not found. Falling back to the slow build: one file at a time, and all "
        "of them every time. `pip install ninja` mends that."
    )


def check_toolchain(compiler):
    for name in ("CXX", "CC"):
        if len(shlex.split(os.getenv(name, ""))) > 1:
            fail(
                f"{name} is {os.environ[name]!r}, and torch takes it for the name of one program. "
                "Put the words into a script and name that, or give options in CXXFLAGS."
            )
    if shutil.which(compiler[0]) is None:
        fail(
            f"the C++ compiler {compiler[0]!r} was not found. Install g++ 12 or later, or clang 14 "
            "or later (Debian, Ubuntu: apt install g++), or name one in the variable CXX."
        )
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        fail(
            f"the headers of Python {platform.python_version()} are missing ({header}). Install "
            "them (Debian, Ubuntu: apt install python3-dev)."
        )


def find_cuda(torch):
    """(the toolkit to build the CUDA half with, None), or (None, the reason why not)."""
    wish = os.getenv("MLP_EXT_CUDA", "")
    if wish not in ("", "0", "1"):
        fail(f"MLP_EXT_CUDA is {wish!r}; it may be 0 (without CUDA), 1 (with) or unset.")
    if wish == "0":
        return None, "MLP_EXT_CUDA=0"
    try:
        if not sources_below("cuda", "*.cu"):
            raise cuda_toolkit.NoCuda("this source has no CUDA kernels (csrc/cuda/*.cu)")
        toolkit = cuda_toolkit.toolkit_for(torch.__version__, torch.version.cuda)
        archs = os.getenv("TORCH_CUDA_ARCH_LIST", "")
        kept, too_old = cuda_toolkit.usable_archs(archs, torch.cuda.device_count())
        if too_old:
            notice(f"NOTICE: not for GPUs of {', '.join(too_old)}, which are too old.")
            os.environ["TORCH_CUDA_ARCH_LIST"] = kept
        return toolkit, None
    except cuda_toolkit.NoCuda as reason:
        if wish == "1":
            fail(f"MLP_EXT_CUDA=1 asks for CUDA kernels, but {reason}.")
        if torch.version.cuda is not None:
            notice(f"NOTICE: building for the CPU only, because {reason}.")
        return None, str(reason)


def sources_below(folder, pattern="*.cpp"):
    paths = (ROOT / "csrc" / folder).rglob(pattern)
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


def flags_of_the_user():
    return [flag for name in ("CFLAGS", "CXXFLAGS") for flag in shlex.split(os.getenv(name, ""))]


def make_extension(cpp_extension, toolkit=None):
    sources = {path for folder in SOURCE_FOLDERS for path in sources_below(folder)}
    flags = {"cxx": CXX_FLAGS + flags_of_the_user(), "nvcc": cuda_toolkit.NVCC_FLAGS}
    if toolkit:
        sources |= {*sources_below("cuda", "*.cu"), *sources_below("cuda")}
    else:
        sources -= set(sources_below("bindings/cuda"))
    extension = cpp_extension.CppExtension(
        "mlp_ext._C",
        sorted(sources),
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args=flags if toolkit else flags["cxx"],
        # The sources call libgomp's entry points themselves, hence no -fopenmp. By the time _C is
        # loaded torch has loaded its libgomp.so.1, and the soname resolves to that copy: one pool
        # of threads.
        libraries=["gomp"],
    )
    if toolkit:
        extension.define_macros.append(("MLP_EXT_WITH_CUDA", None))
        extension.include_dirs += map(str, cuda_toolkit.include_dirs(toolkit)[0])
        extension.library_dirs += map(str, cuda_toolkit.library_dirs(toolkit))
        # By its soname, as pip's runtime has no libcudart.so, which torch's CUDAExtension asks for.
        extension.libraries += ["c10_cuda", "torch_cuda", f":libcudart.so.{toolkit.version[0]}"]
    return extension


def cxx_flags(extension):
    flags = extension.extra_compile_args
    return flags["cxx"] if isinstance(flags, dict) else flags


def make_build_ext(torch, cpp_extension, toolkit, why_not):
    class BuildExt(cpp_extension.BuildExtension):
        """BuildExtension, with objects kept from build to build and a record of what was built."""

        def finalize_options(self):
            super().finalize_options()
            # setuptools compiles an editable install in a temporary folder, from nothing each
            # time. The name keeps torch versions apart: ninja sees changed headers by their time
            # stamps, which may well be older in the torch that replaced another.
            tag = f"{self.plat_name}-{sys.implementation.cache_tag}-torch-{torch.__version__}"
            if toolkit:
                tag += f"-nvcc-{dotted(toolkit.version)}"
            self.build_temp = str(ROOT / "build" / f"temp.{tag}")
            # setuptools would keep a library newer than its sources, whatever torch it was
            # linked to. ninja decides what to compile; linking takes a second.
            self.force = True

        def build_extension(self, extension):
            """First what sees no torch (the kernels), while torch's headers are precompiled for the
            rest: one compiler's flags are those of all its files."""
            torch_users = [path for path in extension.sources if "bindings/" in path]
            others = [path for path in extension.sources if path not in torch_users]
            of_torch, of_others = map(self.objects_of, (torch_users, others))
            header = PrecompiledHeader(
                self.command_for(extension),
                ROOT / "csrc" / "bindings" / "precompiled.h",
                Path(self.build_temp) / "precompiled",
                notice,
            )
            with header, Progress().watch(of_others + of_torch):
                if os.getenv("MAX_JOBS") == "1" and header.maker:
                    header.maker.wait()
                extension.extra_objects = self.compile_some(extension, others)
                flags = header.flags()
                cxx_flags(extension).extend(flags)
                if flags and header.is_new:  # ninja does not know what went into it
                    for path in of_torch:
                        Path(path).unlink(missing_ok=True)
                extension.sources = torch_users
                super().build_extension(extension)

        def objects_of(self, sources):
            return self.compiler.object_filenames(sources, output_dir=self.build_temp)

        def compile_some(self, extension, sources):
            return self.compiler.compile(
                sources,
                output_dir=self.build_temp,
                macros=extension.define_macros,
                include_dirs=extension.include_dirs,
                debug=self.debug,
                extra_postargs=extension.extra_compile_args,
                depends=extension.depends,
            )

        def command_for(self, extension):
            """The compiler with the flags that BuildExtension gives it."""
            defined = [f"-D{n}" if v is None else f"-D{n}={v}" for n, v in extension.define_macros]
            folders = [*self.compiler.include_dirs, *extension.include_dirs]
            return [
                *shlex.split(cpp_extension.get_cxx_compiler()),
                *self.compiler.compiler_so[1:],
                *defined,
                *(f"-I{folder}" for folder in folders),
                *cxx_flags(extension),
            ]

        def run(self):
            compiler = shlex.split(cpp_extension.get_cxx_compiler())
            check_toolchain(compiler)
            super().run()
            # Last, so that a failed build leaves the record of the library that is still there.
            parent = ROOT if self.inplace else Path(self.build_lib)
            values = cuda_build_info(torch, cpp_extension, toolkit, why_not)
            write_build_info(parent / "mlp_ext" / "_build_info.py", torch, compiler, values)

    return BuildExt


def cuda_build_info(torch, cpp_extension, toolkit, why_not):
    """CUDA is torch.version.cuda, or None in a build without CUDA, and WITHOUT_CUDA then says why.

    CUDA_ARCHS has nvcc's names: sm_90a is machine code, compute_80 is PTX.
    """
    if toolkit is None:
        return {"CUDA": None, "WITHOUT_CUDA": why_not}
    archs = [flag.rpartition("code=")[2] for flag in cpp_extension._get_cuda_arch_flags()]
    return {"CUDA": torch.version.cuda, "CUDA_ARCHS": archs, "NVCC": dotted(toolkit.version)}


def write_build_info(path, torch, compiler, cuda_values):
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True)
    values = {
        "TORCH_VERSION": str(torch.__version__),
        "COMPILER": version.stdout.splitlines()[0],
        "BUILD_FLAGS": " ".join([*CXX_FLAGS, *flags_of_the_user()]),
    } | cuda_values
    head = '"""Written by setup.py: what mlp_ext._C was built with. _load.py reads it."""\n\n'
    path.write_text(head + "".join(f"{name} = {value!r}\n" for name, value in values.items()))


def main():
    if not sys.platform.startswith("linux"):
        fail(f"this version is made for Linux (x86-64 and aarch64), not for {sys.platform}.")
    torch = import_torch()
    find_ninja()
    toolkit, why_not = find_cuda(torch)
    if toolkit:
        os.environ["CUDA_HOME"] = str(toolkit.home)  # cpp_extension reads it when it is imported
        if not os.getenv("TORCH_CUDA_ARCH_LIST"):
            os.environ["TORCH_CUDA_ARCH_LIST"] = cuda_toolkit.DEFAULT_ARCHS

    from setuptools import setup
    from torch.utils import cpp_extension

    setup(
        ext_modules=[make_extension(cpp_extension, toolkit)],
        cmdclass={"build_ext": make_build_ext(torch, cpp_extension, toolkit, why_not)},
        # libtorch's C++ ABI changes with every minor release, so a build is good for one of them.
        # With that in the metadata pip warns before an upgrade breaks it; _load.py is the guard.
        install_requires=[f"torch=={dotted(torch_minor(torch.__version__))}.*", "numpy"],
    )


if __name__ == "__main__":  # also when pip calls it; tests import this file
    main()
