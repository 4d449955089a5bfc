#include "dispatch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace mlp_ext::cpu {

namespace scalar {
extern const KernelTable kTable;
}
#if defined(__x86_64__)
namespace avx2 {
extern const KernelTable kTable;
}
namespace avx512 {
extern const KernelTable kTable;
}
namespace avx512_bf16 {
extern const ComputeKernels<BFloat16> kTable;
}
#elif defined(__aarch64__)
namespace neon {
extern const KernelTable kTable;
}
#endif

namespace {

#if defined(__x86_64__)
const KernelTable& avx512_bf16_table() {
  static const KernelTable table = [] {
    KernelTable joined = avx512::kTable;
    joined.name = "avx512_bf16";
    joined.bf16 = &avx512_bf16::kTable;
    return joined;
  }();
  return table;
}
#endif

struct Row {
  const KernelTable* table;
  bool supported;
};

// From the least to the most preferred.
std::vector<Row> rows() {
  std::vector<Row> result = {{&scalar::kTable, true}};
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  // F16C is not asked for: every CPU with AVX2 has it, and clang 14 has no name for it here.
  result.push_back({&avx2::kTable, avx2});
  result.push_back({&avx512::kTable, avx512});
  result.push_back({&avx512_bf16_table(), avx512 && __builtin_cpu_supports("avx512bf16")});
#elif defined(__aarch64__)
  result.push_back({&neon::kTable, true});
#endif
  return result;
}

std::atomic<const KernelTable*> active{&scalar::kTable};

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

const KernelTable& kernels() { return *active.load(std::memory_order_relaxed); }

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (const Row& row : rows()) names.push_back(row.table->name);
  return names;
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Row& row : rows()) {
    if (row.supported) names.push_back(row.table->name);
  }
  return names;
}

void set_isa(const std::string& name) {
  for (const Row& row : rows()) {
    if (row.supported && name == row.table->name) {
      active.store(row.table, std::memory_order_relaxed);
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
