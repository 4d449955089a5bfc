// Which products of 16 bits and of tf32 the library is given: a cost model in clock cycles beside
// that of gemm/heuristics.h, with the same estimated rates, to be replaced by measurements.
//
// Float32 as accurate as float32 arithmetic stays ours: the library has it on the CUDA cores only.
#pragma once

#include "../gemm/heuristics.h"

namespace mlp_ext::cuda {

// As tensor_rate, by the instructions that the library has and mma.sync is not: wgmma on capability
// 9.0, tcgen05 on 10.0 (data sheets).
constexpr double library_rate(int arch) {
  return arch == 90 ? 2048 : arch >= 100 && arch < 120 ? 4096 : tensor_rate(arch);
}

// What is launched beside a product: our elementwise kernels, and how many elements they move.
struct Passes {
  int launches = 0;
  double elements = 0;
};

// The first term: large products reach three quarters of the rate (published measurements).
constexpr double library_cost(const DeviceInfo& device, GemmKind kind, double M, double N,
                              double K) {
  const double rate = library_rate(device.arch) * (kind.bytes == 2 ? 2 : 1) * 0.75;
  return 2 * M * N * K / (rate * device.multiprocessors) + 6000;
}

// 3000 clocks a launch, 20 bytes a clock and multiprocessor between L2 and memory.
constexpr double passes_cost(const DeviceInfo& device, GemmKind kind, Passes passes) {
  return 3000.0 * passes.launches + passes.elements * kind.bytes / (20.0 * device.multiprocessors);
}

// Whether it is worth asking: of fewer floating-point operations, launches are most of the time.
constexpr double kLeastLibraryWork = 1 << 30;
constexpr bool is_library_work(int64_t M, int64_t N, int64_t K) {
  return 2.0 * double(M) * double(N) * double(K) >= kLeastLibraryWork;
}

constexpr bool library_is_faster(const DeviceInfo& device, GemmKind kind, int64_t M, int64_t N,
                                 int64_t K, Passes beside_library, Passes beside_ours) {
  if (!is_library_work(M, N, K)) return false;
  const GemmPlan plan = gemm_plan(device, kind, M, N, K);
  return library_cost(device, kind, double(M), double(N), double(K)) +
             passes_cost(device, kind, beside_library) <
         gemm_cost(device, kind, M, N, K, plan) + passes_cost(device, kind, beside_ours);
}

}  // namespace mlp_ext::cuda
