// A thread makes bytes of the mask, of eight elements each; a block takes a tile of bytes (see
// columns.h) and steps through the rows.
#pragma once

#include "activation_functors.h"
#include "columns.h"
#include "relu_mask.h"

MLP_NAMESPACE_BEGIN

// N: elements of one load, which 8 is a multiple of; 1 where rows do not hold whole loads.
template <class T, int N, int THREADS>
__global__ void __launch_bounds__(THREADS, 1)
    relu_mask_kernel(const __grid_constant__ ReluMaskArgs<T> p, int lanes) {
  const int height = THREADS / lanes;
  const int64_t byte = static_cast<int64_t>(blockIdx.x) * lanes + (threadIdx.x & (lanes - 1));
  if (byte >= p.ld_mask / 8) return;
  const int64_t step = static_cast<int64_t>(gridDim.y) * height;
  for (int64_t m = blockIdx.y * int64_t{height} + threadIdx.x / lanes; m < p.rows; m += step) {
    unsigned bits = 0;
    MLP_UNROLL
    for (int i = 0; i < 8; i += N) {
      const int64_t column = byte * 8 + i;
      if (column >= p.columns) continue;
      const Chunk<T, N> y = load_chunk<T, N>(p.y + m * p.ld_y + column);
      MLP_UNROLL
      for (int j = 0; j < N; ++j) {
        const bool passes = derived<Relu>(ComputeType<T>(1), to_compute(y.get(j))) != 0;
        bits |= static_cast<unsigned>(passes) << (i + j);
      }
    }
    p.mask[m * (p.ld_mask / 8) + byte] = static_cast<uint8_t>(bits);
  }
}

MLP_NAMESPACE_END
