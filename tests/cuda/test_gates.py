"""gates.py, on kernels with one fault each. Compiles for real; no GPU."""

import gates
import pytest
import sass

try:
    TOOLS, MISSING = sass.find_tools(), ""
except sass.MissingTool as missing:
    TOOLS, MISSING = None, str(missing)

needs_nvcc = pytest.mark.skipif(TOOLS is None, reason=MISSING)

KERNELS = {
    # Four floats in one load, four in one store.
    "wide": """
        __global__ void wide(float4* x) {
          float4 v = x[threadIdx.x];
          x[threadIdx.x] = {v.y + v.x, v.z + v.x, v.w + v.x, v.x};
        }""",
    # An array whose index is known at run time only cannot stay in registers.
    "frame": """
        __global__ void frame(float* x, int n) {
          float r[64];
          for (int i = 0; i < 64; ++i) r[i] = x[i];
          for (int i = 0; i < n; ++i) x[i] = r[i % 64];
        }""",
    # 96 values, all in use at once, and 64 registers.
    "spilling": """
        __global__ void __launch_bounds__(1024) spilling(float* x, int n) {
          float r[96];
          #pragma unroll
          for (int i = 0; i < 96; ++i) r[i] = x[3 * i];
          for (int k = 0; k < n; ++k) {
            float s = x[k];
            #pragma unroll
            for (int i = 0; i < 96; ++i) s = s * r[i] + r[95 - i];
            #pragma unroll
            for (int i = 0; i < 96; ++i) r[i] = r[i] * s + r[(i * 5 + 1) % 96];
          }
          #pragma unroll
          for (int i = 0; i < 96; ++i) x[i] = r[i];
        }""",
    "scaled": """
        template <typename T, int N> __global__ void scaled(T* x) {
          __shared__ T s[64];
          s[threadIdx.x] = x[threadIdx.x];
          __syncthreads();
          x[threadIdx.x] = s[63 - threadIdx.x] * T(N);
        }
        template __global__ void scaled<float, 3>(float*);
        template __global__ void scaled<double, 3>(double*);""",
    # Accumulators that are touched between two wgmma: ptxas makes each wait for the last.
    "serial": """
        __global__ void serial(float* x, unsigned long a) {
          float d[4] = {x[0], x[1], x[2], x[3]};
        #ifdef __CUDA_ARCH_FEAT_SM90_ALL
          for (int k = 0; k < 4; ++k) {
            asm volatile(
                "wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 "
                "{%0, %1, %2, %3}, %4, %4, 1, 1, 1;"
                : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "l"(a + k));
            d[0] *= x[k];
          }
          asm volatile("wgmma.commit_group.sync.aligned;");
          asm volatile("wgmma.wait_group.sync.aligned 0;");
        #endif
          x[threadIdx.x] = d[0] + d[1] + d[2] + d[3] + a;
        }""",
}
LAUNCHES = {
    "wide": "wide<<<1, 32>>>(reinterpret_cast<float4*>(x))",
    "frame": "frame<<<1, 1>>>(x, 64)",
    "spilling": "spilling<<<1, 1>>>(x, 64)",
    "serial": "serial<<<1, 128>>>(x, 0)",
    "scaled": "scaled<float, 3><<<1, 64>>>(x), "
    "scaled<double, 3><<<1, 64>>>(reinterpret_cast<double*>(x))",
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cubins")


@pytest.fixture
def gate(tmp_path, cache, capsys):
    """gate(kernel, rows) -> (exit status, what was printed)."""

    def run(name, rows="", more=""):
        source, budgets = tmp_path / f"{name}.cu", tmp_path / "budgets.toml"
        source.write_text(
            f"namespace mlp_ext::cuda {{ namespace {{ {KERNELS[name]} }}\n"
            f"void launch_{name}(float* x) {{ {LAUNCHES[name]}; }} {more} }}\n"
        )
        budgets.write_text(f"nvcc = '{TOOLS.toolkit.release}'\n{rows}")
        arguments = [str(source), "--budgets", str(budgets), "--cache", str(cache), "--jobs", "2"]
        status = gates.main([*arguments, "--table", str(tmp_path / "table.md")])
        return status, capsys.readouterr().out

    return run


def row(name, registers=255, **others):
    # Lists as Python writes them are TOML, but for the backslash.
    values = "".join(f"{key} = {value}\n" for key, value in others.items()).replace("\\\\", "\\")
    return f"[[kernel]]\nname = '{name}'\nregisters = {registers}\n{values}"


@needs_nvcc
def test_a_good_kernel_passes_and_stands_in_the_table(gate, tmp_path):
    status, said = gate(
        "wide", row("wide", require=[r"LDG\.E\.128", r"STG\.E\.128"], forbid=["DADD"])
    )
    assert status == 0, said
    assert "1 files, 1 kernels, 4 archs: 0 errors" in said
    head, line = [
        x for x in (tmp_path / "table.md").read_text().splitlines() if "kernel" in x or "wide" in x
    ]
    assert [cell.strip() for cell in head.split("|")[3:-1]] == list(gates.ARCHS)
    cells = [cell.strip().split(" / ") for cell in line.split("|")[3:-1]]
    assert len(cells) == 4
    for registers, stack, spill, smem in cells:
        assert 4 < int(registers) < 64 and [stack, spill, smem] == ["0", "0", "0"]


@needs_nvcc
def test_an_array_that_is_indexed_at_run_time(gate):
    status, said = gate("frame", row("frame"))
    assert status == 1
    for arch in gates.ARCHS:
        assert f"frame on {arch} (frame.cu): 256 bytes of stack, and 0 at most are allowed" in said
        assert f"frame on {arch} (frame.cu): LDL" in said
    assert gate("frame", row("frame", stack=256))[0] == 0
    assert gate("frame", row("frame", stack=255))[0] == 1


@needs_nvcc
def test_spilled_registers(gate):
    status, said = gate("spilling", row("spilling"))
    assert status == 1
    assert "bytes of spill, and 0 at most are allowed" in said
    assert "STL occurs" in said or "STL.128 occurs" in said or "STL.64 occurs" in said


@needs_nvcc
def test_more_registers_than_the_budget(gate):
    status, said = gate("wide", row("wide", registers="{ sm_90a = 4, other = 64 }"))
    assert status == 1
    assert "registers, and 4 at most are allowed" in said
    assert said.count("ERROR") == 1 and "wide on sm_90a" in said


@needs_nvcc
def test_a_required_and_a_forbidden_instruction(gate):
    status, said = gate("wide", row("wide", require=["HMMA"], forbid=[r"LDG\.E\.128"]))
    assert status == 1
    for arch in gates.ARCHS:
        assert f"wide on {arch} (wide.cu): no instruction matches HMMA, which is required" in said
        assert f"wide on {arch} (wide.cu): LDG.E.128" in said
    only_there = row("wide", require="{ sm_80 = ['HMMA'], other = [] }")
    status, said = gate("wide", only_there)
    assert said.count("ERROR") == 1 and "wide on sm_80" in said


@needs_nvcc
def test_a_kernel_without_a_row_is_given_one_that_passes(gate):
    status, said = gate("scaled")
    assert status == 1
    assert "scaled<float, 3> has no row" in said and "scaled<double, 3> has no row" in said
    rows = said[said.index("[[kernel]]") : said.index("1 files")]
    rows = "\n".join(line for line in rows.splitlines() if not line.startswith("ERROR"))
    status, said = gate("scaled", rows)
    assert status == 0, said
    assert "/ 256 " in said and "/ 512 " in said  # static shared memory: 64 floats, 64 doubles


@needs_nvcc
def test_a_row_without_a_kernel(gate):
    status, said = gate("wide", row("wide") + row("narrow<.*>"))
    assert status == 1
    assert "the row 'narrow<.*>' matches no kernel" in said


@needs_nvcc
def test_warnings_of_kernels_and_of_launchers_are_errors(gate):
    status, said = gate("wide", row("wide"), more="__global__ void k() { int unused; }")
    assert status == 1 and "unused" in said
    status, said = gate("wide", row("wide"), more="int f(int a, unsigned b) { return a < b; }")
    assert status == 1 and "sign-compare" in said


@needs_nvcc
def test_wgmma_that_ptxas_serializes(gate):
    status, said = gate("serial", row("serial"))
    assert status == 1
    assert said.count("ERROR") == 1 and "serial.cu for sm_90a" in said
    assert "wgmma.mma_async instructions are serialized" in said


@needs_nvcc
def test_a_header_is_part_of_what_the_cache_goes_by(tmp_path, cache):
    header, source = tmp_path / "scale.h", tmp_path / "cached.cu"
    source.write_text('#include "scale.h"\n__global__ void k(float* x) { SCALE }\n')
    counts = []
    for body in ("*x *= 2;", "", "*x *= 2;"):
        header.write_text(f"#define SCALE {body}\n")
        (kernel,) = sass.compile_for("sm_80", source, TOOLS, cache)
        counts.append(sum(kernel.opcodes.get(opcode, 0) for opcode in ("FADD", "FMUL")))
    assert counts == [1, 0, 1]
    assert len(list(cache.glob("cached-sm_80-*.json"))) == 2


# ---- without nvcc


def test_names_are_without_namespaces_and_parameters():
    long = (
        "void mlp_ext::cuda::(anonymous namespace)::f<float, (mlp_ext::Kind)1>(float*, int (*)())"
    )
    assert sass.short_name(long) == "f<float, (Kind)1>"
    nested = "void mlp_ext::cuda::f<mlp_ext::Pair<mlp_ext::cuda::Vec<A<int> > > >(int)"
    assert sass.short_name(nested) == "f<Pair<Vec<A<int>>>>"
    assert sass.short_name("mlp_ext::cuda::(anonymous namespace)::g(int)") == "g"
    assert sass.short_name("other::h(int)") == "other::h"


def test_without_nvcc_the_gates_say_that_they_are_skipped(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert gates.main(["--cache", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("SKIPPED: ") and f"no nvcc in {tmp_path / 'bin'}" in said


@pytest.mark.parametrize(
    "rows", ["[[kernel]]\nname = 'k'\nregister = 3\n", "[[kernel]]\nname = 'k'\n"], ids=str.split
)
def test_a_row_that_is_misspelt_is_an_error(tmp_path, rows):
    budgets = tmp_path / "budgets.toml"
    budgets.write_text(f"nvcc = '13.0'\n{rows}")
    with pytest.raises(gates.BadBudgets, match="register"):
        gates.read_budgets(budgets)


def test_a_value_for_an_arch_that_there_is_not_is_an_error():
    with pytest.raises(gates.BadBudgets, match="sm_90"):
        gates.on("sm_80", {"sm_90": 3, "other": 4})
    with pytest.raises(gates.BadBudgets, match="neither sm_80"):
        gates.on("sm_80", {"sm_90a": 3})


def test_the_budgets_of_the_project_can_be_read():
    release, rows = gates.read_budgets(gates.HERE / "budgets.toml")
    assert release
    assert len({r.name for r in rows}) == len(rows)


@needs_nvcc
@pytest.mark.skipif(TOOLS is None or TOOLS.cuobjdump is None, reason="needs cuobjdump")
@pytest.mark.parametrize("name", ["frame", "scaled", "wide"])
def test_the_objects_of_a_build_tell_the_same(gate, tmp_path, name):
    """Registers, stack, shared memory and opcodes, on both archs that it was compiled for."""
    gate(name, row(f"{name}.*"))
    source, folder = tmp_path / f"{name}.cu", tmp_path / "temp" / "csrc" / "cuda"
    folder.mkdir(parents=True)
    wanted = [
        kernel
        for arch in ("sm_80", "sm_90a")
        for kernel in sass.compile_for(arch, source, TOOLS, tmp_path)
    ]
    archs = [flag for arch in ("sm_80", "sm_90a") for flag in ("-gencode", sass.ARCHS[arch])]
    sass.run(TOOLS.toolkit.nvcc, *sass.GATE_FLAGS, *archs, "-c", source, "-o", folder / f"{name}.o")
    found = sass.read_build(tmp_path / "temp", [source], TOOLS, jobs=1)

    def key(kernel):
        return kernel.name, kernel.arch

    assert sorted(found, key=key) == sorted(wanted, key=key)
