"""The layers of the sources: which folder may include or import what, and what kernels may contain.

common -> std scalars.  cpu/kernels -> common, the target region's Vec.  bindings -> all below.
_ops -> torch, _C.  functional -> _ops, reference.  nn, optim -> functional, _C.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "mlp_ext"
SUFFIXES = {".h", ".cpp", ".cuh", ".cu"}

TORCH = re.compile(r"^(torch|ATen|c10|pybind11|Python\.h)")
# Values and limits; nothing that allocates, throws, locks or prints.
SCALAR_HEADERS = {
    *("algorithm", "cmath", "cstddef", "cstdint", "cstring", "limits", "type_traits", "utility"),
    *("array", "bit", "tuple", "initializer_list"),
}
INTRINSICS = {"immintrin.h", "arm_neon.h"}


def sources(folder):
    """Every C++ file below csrc/folder; none where the folder does not exist."""
    return sorted(p for p in (CSRC / folder).rglob("*") if p.suffix in SUFFIXES)


def name_of(path):
    return str(path.relative_to(ROOT))


def code_of(path):
    """The file without comments and string literals."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    return re.sub(r'^(?!\s*#\s*include)(.*?)"(?:\\.|[^"\\\n])*"', r'\1""', text, flags=re.MULTILINE)


def includes(path):
    """(header, the project file it means or None) of each #include."""
    for header, quoted in re.findall(
        r'^\s*#\s*include\s*(?:<([^>]+)>|"([^"]+)")', code_of(path), re.M
    ):
        near = (path.parent / quoted).resolve() if quoted else None
        far = CSRC / quoted if quoted else None
        found = next((p for p in (near, far) if p is not None and p.is_file()), None)
        yield header or quoted, found


def below(path, *folders):
    return any(path.is_relative_to(CSRC / folder) for folder in folders)


def for_all(paths):
    """Makes a check of one file a test of all of them, which names each that fails."""

    def decorate(check):
        def test():
            failures = []
            for path in paths:
                try:
                    check(path)
                except AssertionError as error:
                    failures.append(f"{name_of(path)}: {error}")
            assert paths and not failures, "\n".join(failures)

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return decorate


def every(*folders):
    return for_all([p for folder in folders for p in sources(folder)])


def test_the_folders_are_there():
    """Without them, the tests below would have nothing to look at."""
    for folder in ("common", "cpu/kernels", "cpu/isa", "cpu/targets", "cuda", "bindings"):
        assert sources(folder), f"csrc/{folder} has no sources"


@every("common")
def test_common_includes_only_scalars(path):
    for header, project in includes(path):
        assert below(project, "common") if project else header in SCALAR_HEADERS, header


@every("common", "cpu", "step", "cuda")
def test_no_torch_outside_bindings(path):
    for header, project in includes(path):
        assert not TORCH.match(header), header
        assert project is None or not below(project, "bindings"), header
    assert not re.search(r"\b(at|c10|torch|pybind11|py)::", code_of(path))


@every("cpu")
def test_cpu_includes_cpu_and_common(path):
    for header, project in includes(path):
        assert project is None or below(project, "cpu", "common"), header


@every("cuda")
def test_cuda_includes_cuda_and_common(path):
    for header, project in includes(path):
        if project is not None:
            assert below(project, "cuda", "common"), header
        elif path.suffix == ".cuh":
            assert header in SCALAR_HEADERS, f"kernels reach CUDA through simt.h, not <{header}>"


@every("cuda")
def test_cuda_kernels_run_on_the_host(path):
    """What the stand-in of tests/simt does not know stays in simt.h and ptx/."""
    code = code_of(path)
    if path.name != "simt.h":
        assert "<<<" not in code and not re.search(r"\b__shared__\b", code)
    if path.parent.name != "ptx":
        assert not re.search(r"\basm\b", code)


@every("cpu/kernels", "cpu/isa")
def test_std_headers_stay_above_the_target_region(path):
    """Within the region an inline function of std would be compiled for the wrong machine, and the
    linker might keep that copy; so only region_begin.h, before it opens the region, includes them.
    """
    outside = [header for header, project in includes(path) if project is None]
    if path.name != "region_begin.h":
        assert not outside
    else:
        assert set(outside) <= SCALAR_HEADERS | INTRINSICS
        text = code_of(path)
        assert text.rindex("#include") < text.index("push")


@every("cpu/kernels")
def test_kernels_choose_by_header_not_by_macro(path):
    code = code_of(path)
    macros = r"__(AVX\w*|SSE\w*|FMA|F16C|ARM_NEON|ARM_\w+|x86_64|aarch64|AMX\w*)__"
    assert not re.search(macros, code)
    assert not re.search(r"\b_mm\d*_|\b__m\d+|\bv\w+q_f(32|64)\b", code), (
        "intrinsics belong in isa/"
    )


@every("cpu/kernels", "common", "cpu/isa")
def test_no_lambdas_in_the_target_region(path):
    """A lambda's call operator does not inherit the region's target with GCC."""
    assert not re.search(
        r"(?<![\w\])])\[[\w\s,=&*]*\]\s*(\([^)]*\)\s*(mutable|noexcept)?\s*(->[^{]*)?)?\{",
        code_of(path),
    )


@every("cpu/kernels", "common")
def test_kernels_neither_allocate_nor_throw_nor_thread(path):
    code = code_of(path)
    for word in ("new", "malloc", "throw", "std::vector", "std::string", "std::thread", "omp"):
        assert not re.search(rf"(?<![\w:]){re.escape(word)}\b", code), word
    assert "static thread_local" not in code and "thread_local" not in code


@every("cpu/targets")
def test_a_target_is_a_region_around_the_kernels(path):
    assert len(path.read_text().splitlines()) <= 25
    names = [header for header, _ in includes(path)]
    assert names[0].endswith("region_begin.h") and names[-1].endswith("region_end.h")


@every("step")
def test_step_runs_on_tables_and_launchers(path):
    for header, project in includes(path):
        if project is not None:
            allowed = below(project, "step", "common") or project.name in (
                "kernel_table.h",
                "dispatch.h",
                "launchers.h",
                "heuristics.h",
            )
            assert allowed, header


def imports(path):
    """(top-level modules from elsewhere, modules of the package) that a Python file imports."""
    outside, inside = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            outside |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            outside.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            inside |= {node.module.split(".")[0]} if node.module else {a.name for a in node.names}
    return outside, inside


ALLOWED = {
    "_load": {"_build_info"},
    "_ops": {"_load"},
    "_reference_rules": set(),
    "reference": {"_reference_rules"},
    "_arguments": set(),
    "_overrides": set(),
    "_flops": set(),
    "_losses": {"_arguments", "_load", "_overrides"},
    "_elementwise_losses": {"_arguments", "_load", "_losses", "_ops", "_overrides"},
    "functional": {
        "_arguments",
        "_elementwise_losses",
        "_losses",
        "_ops",
        "_load",
        "_overrides",
        "reference",
    },
    "cpu": {"_load"},
    "_gathering": {"_load", "_surroundings"},
    "data": {"_gathering"},
    "optim": {"_load", "_masters", "_torch_optim"},
    "_torch_optim": {"_load"},
    "_masters": set(),
    "_surroundings": {"_load"},
    "_loss_modules": {"functional", "_surroundings"},
    "nn": {"_linear", "functional", "_load", "_loss_modules", "_runs", "_surroundings", "utils"},
    "nn/_linear": {"functional", "_load", "_runs", "_surroundings"},
    "_runs": {"functional", "_load", "_surroundings"},
    "_explain_activations": {"nn", "_runs"},
    "_explain": {"_explain_activations", "functional", "_load", "nn", "_runs", "_surroundings"},
    "fusion": {"_explain", "nn"},
    "_chain_tensors": set(),
    "_chain_trace": {"_chain_tensors"},
    "_chain": {"functional", "nn", "_runs", "_chain_tensors", "_chain_trace"},
    "_step_parts": {"functional", "_load", "nn", "optim", "_chain", "_runs"},
    "_step_batches": set(),
    "_step_group": {"_load", "_chain"},
    "_recorded": {"_load", "nn", "_chain", "_runs", "_step_parts"},
    "_graphed_step": {
        "_load",
        "reference",
        "nn",
        "_chain",
        "_recorded",
        "_runs",
        "_step_group",
        "_step_parts",
        "_surroundings",
    },
    "_step_core": {
        "_chain",
        "_chain_tensors",
        "_graphed_step",
        "_load",
        "_recorded",
        "_runs",
        "_step_group",
        "_step_parts",
    },
    "train_step": {
        "_load",
        "data",
        "_step_batches",
        "_step_core",
        "_step_group",
        "_step_parts",
    },
}


@pytest.mark.parametrize("name", ALLOWED)
def test_python_layers(name):
    path = PACKAGE / f"{name}.py"
    if not path.exists():
        path = PACKAGE / name / "__init__.py"
    _, inside = imports(path)
    assert inside <= ALLOWED[name] | {"_C"}, f"{name} imports {inside - ALLOWED[name]}"


def test_run_time_dependencies_are_torch_and_numpy():
    import sys

    for path in PACKAGE.rglob("*.py"):
        outside, _ = imports(path)
        foreign = outside - set(sys.stdlib_module_names) - {"torch", "numpy", "mlp_ext"}
        assert not foreign, f"{name_of(path)} imports {foreign}"


def test_benchmarks_and_examples_use_the_public_package():
    for folder in ("benchmarks", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            outside, _ = imports(path)
            assert not outside & {"tests", "cases", "conftest"}, name_of(path)
            private = re.findall(r"mlp_ext(?:\.\w+)*\._\w+", path.read_text())
            allowed = (
                {"mlp_ext.__version__"}
                if folder == "examples"
                else {"mlp_ext._C", "mlp_ext._load._C"}
            )
            assert not set(private) - allowed - {"mlp_ext.__version__"}, name_of(path)


@for_all(
    [
        p
        for f in ("csrc", "mlp_ext", "tests", "benchmarks", "examples")
        for p in sorted((ROOT / f).rglob("*"))
        if p.suffix in SUFFIXES | {".py"}
    ]
)
def test_files_are_small(path):
    assert len(path.read_text().splitlines()) <= 320, "one concept a file"
