#include "cpu_kernels.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel.h"
#include "workspace.h"

namespace mlp_ext {

namespace {

using cpu::Range;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Part `i` of `parts` of [0, n), cut at multiples of `unit`.
Range part_of(int64_t n, int64_t unit, int64_t parts, int64_t i) {
  const int64_t units = ceil_div(n, unit);
  return {std::min(n, units * i / parts * unit), std::min(n, units * (i + 1) / parts * unit)};
}

struct Grid {
  int64_t rows, columns;
};

// How to cut C among `threads`: the cut whose largest part costs least, counting its tiles'
// products and the elements of A and B that the part has to pack (a packed element costs about what
// kPackCost multiply-adds do).
template <class T>
Grid choose_grid(const cpu::GemmArgs<T>& g, const cpu::ComputeKernels<T>& k, int64_t threads) {
  constexpr double kPackCost = 8;
  Grid best{1, 1};
  double least = -1;
  for (int64_t rows = 1; rows <= threads; ++rows) {
    const int64_t columns = threads / rows;
    const double m = double(ceil_div(ceil_div(g.M, k.row_tile), rows) * k.row_tile);
    const double n = double(ceil_div(ceil_div(g.N, k.column_tile), columns) * k.column_tile);
    const double cost = m * n + kPackCost * (m + n);
    if (least < 0 || cost < least) {
      least = cost;
      best = {rows, columns};
    }
  }
  return best;
}

// Multiply-adds a nanosecond of one core, about: 16 lanes x 2 units x 3 GHz with AVX-512.
constexpr int64_t kMultiplyAddsPerWork = 50;
constexpr int64_t kTouchedElementsPerWork = 10;
// Elements with some arithmetic each: a derivative, an exponential.
constexpr int64_t kElementsPerWork = 2;

}  // namespace

template <class T>
void run_gemm(const cpu::GemmArgs<T>& g) {
  const auto& k = compute_kernels<T>();
  // Arithmetic, or for thin products the reading and writing of the operands.
  const int64_t touched = g.M * g.N + g.M * g.K + g.K * g.N;
  const int threads = threads_for(
      std::max(g.M * g.N * g.K / kMultiplyAddsPerWork, touched / kTouchedElementsPerWork));
  if (threads == 1) {
    k.gemm(g, {0, g.M}, {0, g.N}, thread_workspace_of<T>(k.gemm_workspace));
    return;
  }
  const Grid grid = choose_grid(g, k, threads);
  parallel(static_cast<int>(grid.rows * grid.columns), [&](int task) {
    const Range m = part_of(g.M, k.row_tile, grid.rows, task / grid.columns);
    const Range n = part_of(g.N, k.column_tile, grid.columns, task % grid.columns);
    k.gemm(g, m, n, thread_workspace_of<T>(k.gemm_workspace));
  });
}

template <class T>
void run_activation_backward(const cpu::ActivationBackwardArgs<T>& args, int64_t columns) {
  const auto& k = compute_kernels<T>();
  const int threads = threads_for(args.rows * columns / kElementsPerWork);
  parallel(threads, [&](int task) {
    k.activation_backward(args, part_of(columns, k.column_tile, threads, task));
  });
}

template <class T>
double run_cross_entropy(const cpu::CrossEntropyArgs<T>& args, int64_t rows) {
  const auto& k = compute_kernels<T>();
  const int threads = threads_for(rows * (args.classes / kElementsPerWork + 10));
  std::vector<double> sums(threads);
  parallel(threads,
           [&](int task) { sums[task] = k.cross_entropy(args, part_of(rows, 1, threads, task)); });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

#define MLP_INSTANTIATE(T)                                                                  \
  template void run_gemm<T>(const cpu::GemmArgs<T>&);                                       \
  template void run_activation_backward<T>(const cpu::ActivationBackwardArgs<T>&, int64_t); \
  template double run_cross_entropy<T>(const cpu::CrossEntropyArgs<T>&, int64_t);
MLP_INSTANTIATE(float)
MLP_INSTANTIATE(double)
#undef MLP_INSTANTIATE

}  // namespace mlp_ext
