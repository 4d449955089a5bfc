#include "dispatch.h"

#include "blocks.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace mlp_ext::cpu {

// What the files of targets/ make.
#define MLP_MADE(isa)              \
  namespace isa {                  \
  extern const KernelTable kTable; \
  extern const GemmKernels kGemm;  \
  }
MLP_MADE(scalar)
#if defined(__x86_64__)
MLP_MADE(avx2)
MLP_MADE(avx512)
namespace avx512_bf16 {
extern const ComputeKernels<BFloat16> kTable;
}
#elif defined(__aarch64__)
MLP_MADE(neon)
#endif
#undef MLP_MADE

namespace {

struct Row {
  KernelTable table;
  bool supported;
};

template <class T>
GemmKernel<T> sized(GemmKernel<T> kernel) {
  static const Caches caches = caches_of_host();
  kernel.blocks =
      blocks_for(caches, kernel.blocks.kc, kernel.row_tile, kernel.column_tile, sizeof(T));
  kernel.gemm_workspace = kernel.blocks.workspace();
  return kernel;
}

KernelTable join(const char* name, const KernelTable& others, const GemmKernels& products,
                 const ComputeKernels<BFloat16>* bf16 = nullptr) {
  KernelTable table = others;
  table.name = name;
  static_cast<GemmKernel<float>&>(table.f32) = sized(products.f32);
  static_cast<GemmKernel<double>&>(table.f64) = sized(products.f64);
  table.bf16 = bf16;
  return table;
}

std::vector<Row> make_rows() {
  std::vector<Row> result = {{join("scalar", scalar::kTable, scalar::kGemm), true}};
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  const bool pairs = avx512 && __builtin_cpu_supports("avx512bf16");
  // F16C is not asked for: every CPU with AVX2 has it, and clang 14 has no name for it here.
  result.push_back({join("avx2", avx2::kTable, avx2::kGemm), avx2});
  result.push_back({join("avx512", avx512::kTable, avx512::kGemm), avx512});
  result.push_back(
      {join("avx512_bf16", avx512::kTable, avx512::kGemm, &avx512_bf16::kTable), pairs});
#elif defined(__aarch64__)
  result.push_back({join("neon", neon::kTable, neon::kGemm), true});
#endif
  return result;
}

// From the least to the most preferred.
const std::vector<Row>& rows() {
  static const std::vector<Row> the_rows = make_rows();
  return the_rows;
}

std::atomic<const KernelTable*> active{nullptr};  // initialize_dispatch() sets it

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

const KernelTable& kernels() { return *active.load(std::memory_order_relaxed); }

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (const Row& row : rows()) names.push_back(row.table.name);
  return names;
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Row& row : rows()) {
    if (row.supported) names.push_back(row.table.name);
  }
  return names;
}

void set_isa(const std::string& name) {
  for (const Row& row : rows()) {
    if (row.supported && name == row.table.name) {
      active.store(&row.table, std::memory_order_relaxed);
      return;
    }
  }
  throw std::invalid_argument(
      "'" + name + "' is not a CPU ISA that this build and this CPU have; " +
      "supported here: " + joined(supported_isas()) + "; compiled: " + joined(compiled_isas()));
}

bool has_float16_arithmetic() {
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;  // by CPUID: clang 14 has no name for it
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 23 & 1);
#else
  return true;
#endif
}

void initialize_dispatch() {
  const char* requested = std::getenv("MLP_EXT_CPU_ISA");
  if (requested == nullptr || *requested == '\0') return set_isa(supported_isas().back());
  try {
    set_isa(requested);
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(std::string("MLP_EXT_CPU_ISA: ") + error.what());
  }
}

}  // namespace mlp_ext::cpu
