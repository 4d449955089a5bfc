"""What nvcc makes of a .cu file, arch by arch: the resources and the opcodes of each kernel.

Needs no GPU and no torch: nvcc (ptxas -v has the resources), nvdisasm (the opcodes) and c++filt.
Results are kept under a hash of all that they depend on, so that a second run takes no time.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

CSRC = Path(__file__).resolve().parents[2] / "csrc"
sys.path.insert(0, str(CSRC / "cuda"))
import cuda_toolkit  # noqa: E402

ARCHS = {
    "sm_80": "arch=compute_80,code=sm_80",
    "sm_90a": "arch=compute_90a,code=sm_90a",  # -arch=sm_90a would leave its instructions out
    "sm_100": "arch=compute_100,code=sm_100",
    "sm_120": "arch=compute_120,code=sm_120",
}
# Launchers and PTX, without ptxas: the cubins above are made of the kernels alone.
WHOLE = ["-gencode", "arch=compute_80,code=compute_80", "-c", "-Xcompiler"]
WHOLE += ["-Wall,-Wextra,-Wno-unused-parameter,-Wno-unknown-pragmas"]  # as setup.py's
# Not ptxas's -warn-spills and -warn-lmem-usage: as errors they would not listen to the budgets.
GATE_FLAGS = [*cuda_toolkit.NVCC_FLAGS, "-Werror", "all-warnings", "-I", str(CSRC)]


class MissingTool(Exception):
    """What is needed and was not found."""


class CompileError(Exception):
    """The compiler's own words."""


@dataclass(frozen=True)
class Kernel:
    """A kernel on one arch; bytes, and how often each opcode stands in it."""

    name: str  # demangled: adam<float, 4>, without our namespaces and without parameters
    file: str
    arch: str
    registers: int
    stack: int
    spill: int
    smem: int  # static; what a launch asks for comes on top
    opcodes: dict[str, int]


@dataclass(frozen=True)
class Tools:
    toolkit: cuda_toolkit.Toolkit
    nvdisasm: str
    cuobjdump: str | None = None  # to read the objects of a build with


def find_tools() -> Tools:
    try:
        toolkit = cuda_toolkit.find_nvcc()
    except cuda_toolkit.NoCuda as reason:
        raise MissingTool(str(reason)) from None

    def find(name: str) -> str | None:
        folders = (toolkit.home / "bin", None, *cuda_toolkit.pip_folders("bin"))
        found = (shutil.which(name, path=folder and str(folder)) for folder in folders)
        return next(filter(None, found), None)

    if not (nvdisasm := find("nvdisasm")):
        raise MissingTool("there is no nvdisasm (pip install nvidia-cuda-nvdisasm)")
    if not shutil.which("c++filt"):
        raise MissingTool("there is no c++filt (Debian, Ubuntu: apt install binutils)")
    return Tools(toolkit, nvdisasm, find("cuobjdump"))


def run(*command) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise CompileError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


# ---- reading what the tools print


def short_name(demangled: str) -> str:
    """adam<Half> of `void mlp_ext::cuda::(anonymous namespace)::adam<mlp_ext::Half>(float*)`."""
    name = re.sub(r"\(anonymous namespace\)::|mlp_ext::(cuda::)?", "", demangled)
    name = name.replace("> >", ">>").replace("> >", ">>").removeprefix("void ")
    depth = 0
    for at, letter in enumerate(name):  # a template argument may be cast: f<(Kind)1>(int)
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            name = name[:at]
            break
    return name


def parse_resources(log: str) -> dict[str, dict[str, int]]:
    """{mangled name: registers, stack, spill, smem} from what `ptxas -v` says."""
    found = {}
    for block in re.split(r"Compiling entry function ", log)[1:]:
        name = re.match(r"'(\S+)' for", block).group(1)
        frame, stores, loads = re.search(
            rf"Function properties for {re.escape(name)}\s+(\d+) bytes stack frame, "
            r"(\d+) bytes spill stores, (\d+) bytes spill loads",
            block,
        ).groups()
        # Of a kernel that calls functions: theirs included.
        stack = re.search(r"(\d+) bytes cumulative stack size", block)
        smem = re.search(r"(\d+) bytes smem", block)
        found[name] = {
            "registers": int(re.search(r"Used (\d+) registers", block).group(1)),
            "stack": max(int(frame), int(stack.group(1)) if stack else 0),
            "spill": max(int(stores), int(loads)),
            "smem": int(smem.group(1)) if smem else 0,
        }
    return found


def parse_opcodes(listing: str) -> dict[str, Counter]:
    """{mangled name: how often each opcode occurs} from what `nvdisasm -c` says."""
    found: dict[str, Counter] = {}
    current: Counter = Counter()
    for line in listing.splitlines():
        if section := re.match(r"\.text\.(\S+):$", line):
            current = found.setdefault(section.group(1), Counter())
        elif opcode := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+\{?\s*(?:@\S+\s+)?([A-Z][\w.]*)", line):
            current[opcode.group(1)] += 1
    return found


def parse_usage(listing: str) -> dict[str, dict[str, int]]:
    """The same from what `cuobjdump -res-usage` says of a cubin, which has no word for spills: they
    are part of the stack, and LDL and STL among the opcodes."""
    found = {}
    for name, line in re.findall(r"Function (\S+):\s+(REG:.*)", listing):
        said = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
        stack = said["STACK"] + said.get("LOCAL", 0)
        found[name] = {"registers": said["REG"], "stack": stack, "spill": 0, "smem": said["SHARED"]}
    return found


# ---- the objects of a build

# Bytes of shared memory that are the system's own in each block, and that cuobjdump counts.
RESERVED = {"sm_80": 0, "sm_90a": 1024, "sm_100": 1024, "sm_120": 1024}


def read_object(path: Path, tools: Tools) -> list[Kernel]:
    """The kernels in one object, on each of ARCHS that it was compiled for."""
    with tempfile.TemporaryDirectory() as folder:
        command = [tools.cuobjdump, "-xelf", "all", str(path.resolve())]
        subprocess.run(command, cwd=folder, capture_output=True)  # 1 where there is no device code
        kernels = []
        for cubin in sorted(Path(folder).glob("*.cubin")):
            arch = next((a for a in sorted(ARCHS, reverse=True) if f".{a}." in cubin.name), None)
            if arch is None:  # one that the budgets do not speak of
                continue
            usage = parse_usage(run(tools.cuobjdump, "-res-usage", cubin))
            opcodes = parse_opcodes(run(tools.nvdisasm, "-c", cubin))
            names = run("c++filt", *usage).splitlines() if usage else []
            for name, (mangled, resources) in zip(names, usage.items(), strict=True):
                resources["smem"] = max(0, resources["smem"] - RESERVED[arch])
                kernels.append(
                    Kernel(
                        short_name(name.strip()),
                        f"{path.stem}.cu",
                        arch,
                        **resources,
                        opcodes=dict(opcodes[mangled]),
                    )
                )
        return kernels


def read_build(folder: Path, sources, tools: Tools, jobs: int) -> list[Kernel]:
    """The kernels of the newest object of each source below `folder`."""
    if tools.cuobjdump is None:
        raise MissingTool("there is no cuobjdump (pip install nvidia-cuda-cuobjdump)")
    made = sorted(folder.rglob("csrc/cuda/**/*.o"), key=lambda path: path.stat().st_mtime)
    newest = {path.stem: path for path in made}
    objects = [newest[source.stem] for source in sources if source.stem in newest]
    with ThreadPoolExecutor(jobs) as pool:
        return [k for found in pool.map(lambda o: read_object(o, tools), objects) for k in found]


# ---- compiling


def with_includes(path: Path, seen: dict[Path, str] | None = None) -> dict[Path, str]:
    """{file: text} of a source and every file of the project that it includes."""
    seen = {} if seen is None else seen
    seen[path] = path.read_text()
    for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', seen[path], re.MULTILINE):
        for candidate in ((path.parent / name).resolve(), CSRC / name):
            if candidate.is_file():
                if candidate not in seen:
                    with_includes(candidate, seen)
                break
    return seen


def compile_for(arch: str, source: Path, tools: Tools, cache: Path) -> list[Kernel]:
    """The kernels of `source` on one of ARCHS; none for "host", which compiles all but those."""
    flags = WHOLE if arch == "host" else ["-gencode", ARCHS[arch], "-Xptxas", "-v", "-cubin"]
    command = [tools.toolkit.nvcc, *GATE_FLAGS, *flags]
    parts = [Path(__file__).read_text(), repr(tools), *command, *with_includes(source).values()]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
    kept = cache / f"{source.stem}-{arch}-{key}.json"
    if kept.exists():
        return [Kernel(**values) for values in json.loads(kept.read_text())]

    cache.mkdir(parents=True, exist_ok=True)
    output = kept.with_suffix(".cubin" if arch in ARCHS else ".o")
    log = run(*command, "-o", output, source)
    kernels = []
    if arch in ARCHS:
        # Said of wgmma whose accumulators are touched too early; it is no warning to nvcc.
        if "Potential Performance Loss" in log:
            raise CompileError(f"{source.name} for {arch}:\n{log}")
        opcodes = parse_opcodes(run(tools.nvdisasm, "-c", output))
        for mangled, resources in parse_resources(log).items():
            name = short_name(run("c++filt", mangled).strip())
            kernels.append(
                Kernel(name, source.name, arch, **resources, opcodes=dict(opcodes[mangled]))
            )
    output.unlink()
    kept.write_text(json.dumps([asdict(kernel) for kernel in kernels]))
    return kernels


def compile_all(sources, tools: Tools, cache: Path, jobs: int) -> tuple[list[Kernel], list[str]]:
    """The kernels of all sources on all archs, and what would not compile."""
    kernels, errors = [], []
    with ThreadPoolExecutor(jobs) as pool:
        tasks = [
            pool.submit(compile_for, arch, source, tools, cache)
            for source in sources
            for arch in (*ARCHS, "host")
        ]
        for task in tasks:
            try:
                kernels += task.result()
            except CompileError as error:
                errors.append(str(error))
    return kernels, errors
