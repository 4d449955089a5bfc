// Lists of tensors, cut into chunks of elements, a block a chunk: so that one launch serves all
// parameters of a model, the large and the small.
//
// A list travels as a kernel parameter, of which a launch may have 4096 bytes (32764 with CUDA 12.1
// and later on sm_70 and newer); every launch copies all of it, however few tensors it has, so a
// list holds kMostTensors, and longer ones take several launches.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../cuda_api.h"

namespace mlp_ext::cuda {

constexpr int kMostTensors = 64;
constexpr int kMultiTensorThreads = 256;
// What 256 threads take in one round of 16-byte accesses to float32. Chunks are multiples of it, so
// that they are aligned wherever their tensor is.
constexpr int64_t kChunkUnit = 1024;
constexpr size_t kMostParameterBytes = 4096;

// Tensor: has n, its number of elements.
template <class Tensor>
struct TensorList {
  int64_t chunk;
  int count;
  int first_block[kMostTensors];  // of each tensor; that of the next one if it has no elements
  Tensor tensors[kMostTensors];
};

// `total` elements in about four blocks a multiprocessor: a model of a million parameters on 132
// multiprocessors has 489 blocks, where chunks of 65536 would make 16.
inline int64_t even_chunk(int64_t total, int multiprocessors) {
  const int64_t chunk = total / (int64_t{4} * multiprocessors);
  return std::max<int64_t>(1, (chunk + kChunkUnit - 1) / kChunkUnit) * kChunkUnit;
}

inline int64_t blocks_of(int64_t n, int64_t chunk) { return (n + chunk - 1) / chunk; }

template <class Tensor>
int64_t total_elements(const Tensor* tensors, int64_t count) {
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) total += tensors[i].n;
  return total;
}

// Fills the list with tensors, at most kMostTensors of them; returns the number of blocks.
template <class Tensor>
int fill(TensorList<Tensor>& list, const Tensor* tensors, int64_t count, int64_t chunk) {
  list.chunk = chunk;
  list.count = static_cast<int>(count);
  int64_t blocks = 0;
  for (int i = 0; i < list.count; ++i) {
    list.first_block[i] = static_cast<int>(blocks);
    list.tensors[i] = tensors[i];
    blocks += blocks_of(tensors[i].n, chunk);
  }
  return static_cast<int>(blocks);
}

}  // namespace mlp_ext::cuda
