// What the fused MLP moves between global memory, shared memory and a warp's accumulators.
//
// Copies to shared memory are asynchronous where the addresses allow it: a reader waits for its
// copies, and then at a barrier for those of others. What lies outside of the matrix becomes zero.
#pragma once

#include "fused_mlp_fragments.cuh"
#include "../ptx/cp_async.h"

MLP_NAMESPACE_BEGIN

// Columns that a product works out at a time, and to which fill_weights fills up.
template <int W>
constexpr int kColumnGroup = W < 32 ? W : 32;

template <int TO>
MLP_DEVICE int rounded_up(int n) {
  return (n + TO - 1) / TO * TO;
}
// Whether every row of a matrix begins at a multiple of BYTES.
template <int BYTES, class T>
MLP_DEVICE bool rows_aligned(const T* p, int64_t ld) {
  return (reinterpret_cast<uintptr_t>(p) | static_cast<uintptr_t>(ld * int64_t{sizeof(T)})) %
             BYTES ==
         0;
}
// How many of `count` elements that begin at `first` lie before `end`.
MLP_DEVICE int elements_before(int end, int first, int count) {
  return end <= first ? 0 : end - first < count ? end - first : count;
}

// A matrix (rows, columns) to the rows of a tile that has filled_rows and filled_columns, both at
// least as large; filled_columns a multiple of 16.
template <class T>
MLP_DEVICE void fill_rows(T* tile, int stride, const T* from, int64_t ld, int rows, int columns,
                          int filled_rows, int filled_columns) {
  const bool packed = rows_aligned<16>(from, ld);
  const int pack = packed ? kPack<T> : 1, packs = filled_columns / pack;
  for (int i = threadIdx.x; i < filled_rows * packs; i += blockDim.x) {
    const int row = i / packs, column = i % packs * pack;
    const int valid = row < rows ? elements_before(columns, column, pack) : 0;
    T* const to = tile + row * stride + column;
    const T* const source = valid > 0 ? from + row * ld + column : from;
    if (packed) {
      cp_async<16>(to, source, valid * static_cast<int>(sizeof(T)));
    } else if constexpr (sizeof(T) == 4) {
      cp_async<4>(to, source, valid * 4);
    } else {
      *to = valid > 0 ? *source : T{};
    }
  }
}

// The weights (out, in) of a layer, for x W^T or, TRANSPOSED, for dz W; see from_weights.
template <int W, bool TRANSPOSED>
MLP_DEVICE void fill_weights(float* slot, const float* weight, int64_t ld, int out, int in) {
  constexpr int kStride = fused_weight_stride<float>(W);
  if constexpr (TRANSPOSED) {
    // A warp takes 4 rows of 8 columns: whole sectors of memory, and few clashes of banks.
    const int rows = rounded_up<16>(out), columns = rounded_up<kColumnGroup<W>>(in);
    const int lane = threadIdx.x % 32, across = columns / 8;
    for (int i = threadIdx.x / 32; i < rows / 4 * across; i += blockDim.x / 32) {
      const int row = i / across * 4 + lane / 8, column = i % across * 8 + lane % 8;
      const bool valid = row < out && column < in;
      cp_async<4>(slot + column * kStride + permuted(row),
                  valid ? weight + row * ld + column : weight, valid ? 4 : 0);
    }
  } else {
    const int rows = rounded_up<kColumnGroup<W>>(out), pairs = rounded_up<16>(in) / 2;
    const bool paired = rows_aligned<8>(weight, ld);
    for (int i = threadIdx.x; i < rows * pairs; i += blockDim.x) {
      const int row = i / pairs, column = i % pairs * 2;
      const int valid = row < out ? elements_before(in, column, 2) : 0;
      float* const to = slot + row * kStride + permuted(column);
      const float* const source = valid > 0 ? weight + row * ld + column : weight;
      if (paired) {
        cp_async<8>(to, source, valid * 4);
      } else {
        cp_async<4>(to, source, valid > 0 ? 4 : 0);
        cp_async<4>(to + 1, valid > 1 ? source + 1 : weight, valid > 1 ? 4 : 0);
      }
    }
  }
}
template <int W, bool TRANSPOSED, class T>
MLP_DEVICE void fill_weights(T* slot, const T* weight, int64_t ld, int out, int in) {
  constexpr int kGroup = kColumnGroup<W>;
  fill_rows(slot, fused_weight_stride<T>(W), weight, ld, out, in,
            TRANSPOSED ? rounded_up<16>(out) : rounded_up<kGroup>(out),
            TRANSPOSED ? rounded_up<kGroup>(in) : rounded_up<16>(in));
}

// A warp's 16 rows of a matrix whose first row is at `rows`, as accumulators; `valid` of them are
// there, and `columns` of each. `rows` may be shared memory.
template <int TILES, class T>
MLP_DEVICE void load_rows(float (&c)[TILES][4], const T* rows, int64_t ld, int64_t valid,
                          int columns) {
  const auto [g, q] = this_lane();
  const bool paired = columns % 2 == 0 && rows_aligned<2 * sizeof(T)>(rows, ld);
  MLP_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = g + 8 * half;
    const T* const from = rows + row * ld;
    MLP_UNROLL
    for (int n = 0; n < TILES; ++n) {
      const int column = 8 * n + 2 * q;
      c[n][2 * half] = c[n][2 * half + 1] = 0;
      if (row < valid && column < columns) {
        if (paired) {
          const auto two = *reinterpret_cast<const Pack<T, 2>*>(from + column);
          c[n][2 * half] = to_compute(two.at[0]);
          c[n][2 * half + 1] = to_compute(two.at[1]);
        } else {
          c[n][2 * half] = to_compute(from[column]);
          if (column + 1 < columns) c[n][2 * half + 1] = to_compute(from[column + 1]);
        }
      }
    }
  }
}

MLP_DEVICE void store_pair(float* to, float first, float second) {
  *reinterpret_cast<Pack<float, 2>*>(to) = {{first, second}};
}
template <class T>
MLP_DEVICE void store_pair(T* to, float first, float second) {
  *reinterpret_cast<uint32_t*>(to) = pack_pair(T{}, first, second);
}

// The reverse of load_rows.
template <int TILES, class T>
MLP_DEVICE void store_rows(T* rows, int64_t ld, int64_t valid, int columns,
                           const float (&c)[TILES][4]) {
  const auto [g, q] = this_lane();
  const bool paired = columns % 2 == 0 && rows_aligned<2 * sizeof(T)>(rows, ld);
  MLP_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = g + 8 * half;
    T* const to = rows + row * ld;
    MLP_UNROLL
    for (int n = 0; n < TILES; ++n) {
      const int column = 8 * n + 2 * q;
      if (row < valid && column < columns) {
        if (paired) {
          store_pair(to + column, c[n][2 * half], c[n][2 * half + 1]);
        } else {
          to[column] = from_compute<T>(c[n][2 * half]);
          if (column + 1 < columns) to[column + 1] = from_compute<T>(c[n][2 * half + 1]);
        }
      }
    }
  }
}

// What the storage type makes of the accumulators.
template <class T, int TILES>
MLP_DEVICE void round_to(float (&c)[TILES][4]) {
  if constexpr (sizeof(T) == 2) {
    MLP_UNROLL
    for (int n = 0; n < TILES; ++n) {
      MLP_UNROLL
      for (int i = 0; i < 4; i += 2) {
        unpack_pair(T{}, pack_pair(T{}, c[n][i], c[n][i + 1]), c[n][i], c[n][i + 1]);
      }
    }
  }
}

// Zero in the columns that the layer does not have, whatever f(0) or 0 times infinity made of them.
template <int TILES>
MLP_DEVICE void clear_beyond(float (&c)[TILES][4], int columns) {
  if (columns == 8 * TILES) return;
  const int q = this_lane().q;
  MLP_UNROLL
  for (int n = 0; n < TILES; ++n) {
    MLP_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (8 * n + 2 * q + i % 2 >= columns) c[n][i] = 0;
    }
  }
}

MLP_NAMESPACE_END
