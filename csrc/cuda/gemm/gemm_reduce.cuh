// The second kernels of a product: the sum of split K's parts with the epilogue, and the sum of the
// column sums of blocks of rows. Both add in a fixed order.
//
// A kernel of its own rather than the last block of each tile: where K is split there are few tiles
// (the weight gradient of a layer of 256 has 4), and one multiprocessor would read megabytes that
// all of them read in a few microseconds; and there is no counter to reset.
#pragma once

#include "gemm_epilogue.cuh"

MLP_NAMESPACE_BEGIN

constexpr int kPartRows = 16, kPartColumns = 64, kPartThreads = 256;

template <class T>
__global__ void __launch_bounds__(kPartThreads) sum_parts(const __grid_constant__ GemmParams<T> p) {
  const int64_t strips = (p.g.N + kPartColumns - 1) / kPartColumns;
  const int64_t row_block = blockIdx.x / strips;
  const int64_t m = row_block * kPartRows, n = blockIdx.x % strips * kPartColumns;
  const Addends sums{p.parts + m * p.ld_parts + n, p.ld_parts, p.split, p.g.M * p.ld_parts};
  finish<T, kPartRows, kPartColumns, kPartThreads>(p, sums, m, n, shared_memory<float>(),
                                                   row_block);
}

constexpr int kColumnLanes = 32;

// 32 columns a block, each summed by 32 threads, which take every 32nd block of rows.
template <class T>
__global__ void __launch_bounds__(32 * kColumnLanes)
    sum_column_parts(const float* parts, int64_t row_blocks, int64_t N, T* column_sum) {
  float* const shared = shared_memory<float>();
  const int column = int(threadIdx.x) % 32, lane = int(threadIdx.x) / 32;
  const int64_t n = int64_t(blockIdx.x) * 32 + column;
  float sum = 0;
#pragma unroll 4
  for (int64_t i = lane; i < row_blocks; i += kColumnLanes) {
    if (n < N) sum += parts[i * N + n];
  }
  shared[lane * 32 + column] = sum;
  __syncthreads();
  if (lane > 0 || n >= N) return;
  for (int l = 1; l < kColumnLanes; ++l) sum += shared[l * 32 + column];
  column_sum[n] = from_compute<T>(sum);
}

MLP_NAMESPACE_END
