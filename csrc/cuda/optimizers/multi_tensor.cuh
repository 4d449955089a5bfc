// The running block's part of a list of tensors, and elements of any storage type in registers.
#pragma once

#include "multi_tensor.h"
#include "../pack.h"
#include "../ptx/store.h"

MLP_NAMESPACE_BEGIN

struct Chunk {
  int tensor;
  int64_t first, n;  // elements
};

template <class Tensor>
MLP_DEVICE Chunk chunk_of_block(const TensorList<Tensor>& list) {
  const int block = static_cast<int>(blockIdx.x);
  int low = 0, high = list.count - 1;  // the last tensor that begins at or before this block
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (list.first_block[middle] <= block) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const int64_t first = (block - list.first_block[low]) * list.chunk;
  const int64_t left = list.tensors[low].n - first;
  return {low, first, left < list.chunk ? left : list.chunk};
}

// Whether all of them (the bits of addresses, or-ed) may be read in packs.
MLP_DEVICE bool is_aligned(uintptr_t addresses) { return addresses % 16 == 0; }

// One element, or 16 bytes of them, to which p is aligned.
template <int N, class T>
MLP_DEVICE void store_pack(T* p, const Pack<T, N>& pack) {
  if constexpr (sizeof pack == sizeof(uint4)) {
    uint4 bits;
    memcpy(&bits, &pack, sizeof pack);
    store_16_bytes(p, bits);
  } else {
    static_assert(N == 1);
    *p = pack.at[0];
  }
}

// N elements: one, or some times 16 bytes.
template <int N, class T>
MLP_DEVICE void load(const T* p, ComputeType<T> (&x)[N]) {
  constexpr int kAtOnce = N < kPack<T> ? N : kPack<T>;
  MLP_UNROLL
  for (int i = 0; i < N; i += kAtOnce) {
    const auto pack = *reinterpret_cast<const Pack<T, kAtOnce>*>(p + i);
    MLP_UNROLL
    for (int j = 0; j < kAtOnce; ++j) x[i + j] = to_compute(pack.at[j]);
  }
}

template <int N, class T>
MLP_DEVICE void store(T* p, const ComputeType<T> (&x)[N]) {
  constexpr int kAtOnce = N < kPack<T> ? N : kPack<T>;
  MLP_UNROLL
  for (int i = 0; i < N; i += kAtOnce) {
    Pack<T, kAtOnce> pack;
    MLP_UNROLL
    for (int j = 0; j < kAtOnce; ++j) pack.at[j] = from_compute<T>(x[i + j]);
    store_pack(p + i, pack);
  }
}

MLP_NAMESPACE_END
