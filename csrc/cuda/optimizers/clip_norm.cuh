// Kernels of clip_norm.h. Bound by memory: 4 bytes a float32 element for the norm, 8 more where it
// has to be scaled.
//
// Squares are added in double precision, which neither overflows nor loses digits: a conversion and
// a multiply-add an element are within the time of the 4 bytes even at 1/64 of float32's rate.
#pragma once

#include "clip_norm.h"
#include "multi_tensor.cuh"

MLP_NAMESPACE_BEGIN

constexpr int kWarps = kMultiTensorThreads / 32;

// The sum over the block, in every thread, always in the same order. Shared memory: kWarps.
MLP_DEVICE double block_sum(double x) {
  double* const of_warp = shared_memory<double>();
  MLP_UNROLL
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(~0u, x, d);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  double sum = 0;
  MLP_UNROLL
  for (int w = 0; w < kWarps; ++w) sum += of_warp[w];
  return sum;
}

struct SquaresParameters {
  TensorList<FlatTensor> list;
  double* partial;  // of the launch's blocks
};

template <class T>
__global__ void __launch_bounds__(kMultiTensorThreads)
    sum_of_squares(const __grid_constant__ SquaresParameters p) {
  constexpr int N = kPack<T>;
  const Chunk chunk = chunk_of_block(p.list);
  const T* const values = static_cast<const T*>(p.list.tensors[chunk.tensor].values) + chunk.first;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t packed = is_aligned(reinterpret_cast<uintptr_t>(values)) ? chunk.n / N * N : 0;
  double sum = 0;
  for (int64_t i = thread * N; i < packed; i += kMultiTensorThreads * N) {
    T x[N];
    load<N>(values + i, x);
    MLP_UNROLL
    for (int j = 0; j < N; ++j) sum += static_cast<double>(x[j]) * static_cast<double>(x[j]);
  }
  for (int64_t i = packed + thread; i < chunk.n; i += kMultiTensorThreads) {
    sum += static_cast<double>(values[i]) * static_cast<double>(values[i]);
  }
  sum = block_sum(sum);
  if (thread == 0) p.partial[blockIdx.x] = sum;
}

template <class T>
struct ScaleParameters {
  TensorList<FlatTensor> list;
  const double* partial;
  int partials;  // of all launches
  T max_norm;
  T* norm;
};

template <class T>
__global__ void __launch_bounds__(kMultiTensorThreads)
    scale_to_norm(const __grid_constant__ ScaleParameters<T> p) {
  constexpr int N = kPack<T>;
  const int thread = static_cast<int>(threadIdx.x);
  double sum = 0;
  for (int i = thread; i < p.partials; i += kMultiTensorThreads) sum += p.partial[i];
  const T norm = static_cast<T>(::sqrt(block_sum(sum)));
  if (blockIdx.x == 0 && thread == 0) *p.norm = norm;
  // In the gradients' precision, as torch does it. NaN is not above 1, and so makes all NaN.
  const T factor = p.max_norm * (T(1) / (norm + static_cast<T>(1e-6)));
  if (factor >= 1) return;
  const Chunk chunk = chunk_of_block(p.list);
  T* const values = static_cast<T*>(p.list.tensors[chunk.tensor].values) + chunk.first;
  const int64_t packed = is_aligned(reinterpret_cast<uintptr_t>(values)) ? chunk.n / N * N : 0;
  for (int64_t i = thread * N; i < packed; i += kMultiTensorThreads * N) {
    T x[N];
    load<N>(values + i, x);
    MLP_UNROLL
    for (int j = 0; j < N; ++j) x[j] *= factor;
    store<N>(values + i, x);
  }
  for (int64_t i = packed + thread; i < chunk.n; i += kMultiTensorThreads) values[i] *= factor;
}

MLP_NAMESPACE_END
