// z = x + bias[n], y = f(z), elementwise over (rows, columns): a block takes a tile of columns (see
// columns.h) and steps through the rows, two at a time so that both loads are on their way.
#pragma once

#include "activation.h"
#include "activation_functors.h"
#include "columns.h"

MLP_NAMESPACE_BEGIN

template <class F, class T, int N, int THREADS>
__global__ void __launch_bounds__(THREADS, 1)
    activation_kernel(const __grid_constant__ ActivationArgs<T> p, int lanes) {
  using C = ComputeType<T>;
  constexpr int kRows = 2;
  const int height = THREADS / lanes;
  const int64_t column =
      (static_cast<int64_t>(blockIdx.x) * lanes + (threadIdx.x & (lanes - 1))) * N;
  if (column >= p.columns) return;
  C bias[N];
  MLP_UNROLL
  for (int j = 0; j < N; ++j) bias[j] = p.bias ? to_compute(p.bias[column + j]) : C(0);
  const int64_t step = static_cast<int64_t>(gridDim.y) * height;
  for (int64_t m = blockIdx.y * int64_t{height} + threadIdx.x / lanes; m < p.rows;
       m += kRows * step) {
    Chunk<T, N> z[kRows], y[kRows] = {};
    MLP_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (m + r * step < p.rows) z[r] = load_chunk<T, N>(p.x + (m + r * step) * p.ld_x + column);
    }
    MLP_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = m + r * step;
      if (row >= p.rows) continue;
      MLP_UNROLL
      for (int j = 0; j < N; ++j) {
        if (p.bias) z[r].set(j, from_compute<T>(to_compute(z[r].get(j)) + bias[j]));
        y[r].set(j, from_compute<T>(activated<F>(to_compute(z[r].get(j)))));
      }
      if (p.z) store_chunk(p.z + row * p.ld_z + column, z[r]);
      store_chunk(p.y + row * p.ld_y + column, y[r]);
    }
  }
}

MLP_NAMESPACE_END
