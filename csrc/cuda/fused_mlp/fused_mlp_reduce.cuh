// The second stage of the fused MLP's weight gradients: the sum of all blocks' partials, in their
// order. A warp reads 32 neighbours of a partial; the 8 warps of a block take every 8th partial,
// and their sums are added up in shared memory.
#pragma once

#include "fused_mlp.h"
#include "fused_mlp_gradient.cuh"

MLP_NAMESPACE_BEGIN

constexpr int kReduceWarps = 8;

template <class T>
struct ReducedLayer {
  int out, in;
  int64_t begin;  // where the layer begins in a partial
  T *dw, *db;
};
template <class T>
struct Reduction {
  const float* partials;
  int64_t count, stride;
  int layers;
  ReducedLayer<T> layer[kFusedLayers];
};

// The place of a partial's element `i` in dw or db; null where there is none.
template <class T>
MLP_DEVICE T* place_of(const ReducedLayer<T>& layer, int i) {
  const int in_dw = i - gradient_elements(layer.out, layer.in);
  if (in_dw >= 0) return layer.db != nullptr && in_dw < layer.out ? layer.db + in_dw : nullptr;
  const int across = (layer.in + 15) / 16, block = i / 256, lane = i % 32, part = i / 32 % 4;
  const int row = block / across * 16 + lane / 4 + part / 2 * 8;
  const int column = block % across * 16 + i / 128 % 2 * 8 + lane % 4 * 2 + part % 2;
  const bool there = layer.dw != nullptr && row < layer.out && column < layer.in;
  return there ? layer.dw + int64_t{row} * layer.in + column : nullptr;
}

template <class T>
__global__ void __launch_bounds__(32 * kReduceWarps)
    reduce_gradients(const __grid_constant__ Reduction<T> work) {
  float* const sums = shared_memory<float>();
  const int64_t element = int64_t{blockIdx.x} * 32 + threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  int l = 0;
  while (l + 1 < work.layers && element >= work.layer[l + 1].begin) ++l;
  T* const to = place_of(work.layer[l], static_cast<int>(element - work.layer[l].begin));
  float sum = 0;
  if (to != nullptr) {
#pragma unroll 4
    for (int64_t p = warp; p < work.count; p += kReduceWarps) {
      sum += work.partials[p * work.stride + element];
    }
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (warp == 0 && to != nullptr) {
    for (int w = 1; w < kReduceWarps; ++w) sum += sums[32 * w + threadIdx.x];
    *to = from_compute<T>(sum);
  }
}

MLP_NAMESPACE_END
