// A warp's product of 16 rows with the weights of a layer in shared memory.
#pragma once

#include "fused_mlp_tiles.cuh"

MLP_NAMESPACE_BEGIN

// The left operand, from the accumulators of the layer below.
template <int W>
struct FromAccumulators {
  const float (&c)[W / 8][4];
  template <class S>
  MLP_DEVICE void get(Left<S>& left, int chunk) const {
    from_accumulators(left, c[2 * chunk], c[2 * chunk + 1]);
  }
};

// The left operand, from 16 rows of a tile in shared memory, each lane reading what it would hold
// as accumulators.
template <class T, int W>
struct FromTile {
  const T* rows;
  template <class S>
  MLP_DEVICE void get(Left<S>& left, int chunk) const {
    const auto [g, q] = this_lane();
    constexpr int kStride = fused_tile_stride(W);
    float c[2][4];
    MLP_UNROLL
    for (int i = 0; i < 4; ++i) {
      const auto two = *reinterpret_cast<const Pack<T, 2>*>(rows + (g + i % 2 * 8) * kStride +
                                                            16 * chunk + i / 2 * 8 + 2 * q);
      c[i / 2][i % 2 * 2] = two.at[0];
      c[i / 2][i % 2 * 2 + 1] = two.at[1];
    }
    from_accumulators(left, c[0], c[1]);
  }
  template <class H>
  MLP_DEVICE void get(Left<Half<H>>& left, int chunk) const {
    const auto [g, q] = this_lane();
    constexpr int kStride = fused_tile_stride(W);
    MLP_UNROLL
    for (int i = 0; i < 4; ++i) {
      left.bits[i] = *reinterpret_cast<const uint32_t*>(rows + (g + i % 2 * 8) * kStride +
                                                        16 * chunk + i / 2 * 8 + 2 * q);
    }
  }
};

// Whether all are finite.
template <int TILES>
MLP_DEVICE bool finite(const float (&c)[TILES][4]) {
  float zero[4] = {};
  MLP_UNROLL
  for (int n = 0; n < TILES; ++n) {
    MLP_UNROLL
    for (int i = 0; i < 4; ++i) zero[i] = fmaf(c[n][i], 0.0f, zero[i]);
  }
  return zero[0] + zero[1] + (zero[2] + zero[3]) == 0;
}
MLP_DEVICE bool finite(float x) { return x - x == 0; }

// What Full got wrong where operands are infinite: the elements that are not finite, once more.
template <int W, bool TRANSPOSED, class Source>
MLP_DEVICE void correct_product(float (&c)[W / 8][4], const Source& source, const float* weights,
                                int inner, int columns) {
  MLP_UNROLL
  for (int pair = 0; pair < W / 16; ++pair) {
    if (16 * pair >= columns) continue;
    float again[2][4] = {};
    MLP_UNROLL
    for (int chunk = 0; chunk < W / 16; ++chunk) {
      if (16 * chunk >= inner) continue;
      Left<Plain> left;
      Right<Plain> right;
      source.get(left, chunk);
      from_weights<W, TRANSPOSED>(right, weights, chunk, pair);
      MLP_UNROLL
      for (int t = 0; t < 2; ++t) multiply(again[t], left, right, t);
    }
    MLP_UNROLL
    for (int i = 0; i < 8; ++i) {
      float& x = c[2 * pair + i / 4][i % 4];
      if (!finite(x)) x = again[i / 4][i % 4];
    }
  }
}

// c = source B, the contraction having `inner` elements and B `columns`; slot: filled by
// fill_weights<W, TRANSPOSED>.
template <class S, int W, bool TRANSPOSED, class Source>
MLP_DEVICE void product(float (&c)[W / 8][4], const Source& source, const typename S::Type* slot,
                        int inner, int columns) {
  MLP_UNROLL
  for (int n = 0; n < W / 8; ++n) {
    MLP_UNROLL
    for (int i = 0; i < 4; ++i) c[n][i] = 0;
  }
  constexpr int kPairs = kColumnGroup<W> / 16;
  MLP_UNROLL
  for (int chunk = 0; chunk < W / 16; ++chunk) {
    if (16 * chunk >= inner) continue;
    Left<S> left;
    source.get(left, chunk);
    MLP_UNROLL
    for (int group = 0; group < W / 16; group += kPairs) {
      if (16 * group >= columns) continue;
      MLP_UNROLL
      for (int pair = group; pair < group + kPairs; ++pair) {
        Right<S> right;
        from_weights<W, TRANSPOSED>(right, slot, chunk, pair);
        MLP_UNROLL
        for (int t = 0; t < 2; ++t) accumulate(c[2 * pair + t], left, right, t);
      }
    }
  }
  if constexpr (S::kPromotes) {
    if (__any_sync(~0u, !finite(c))) {
      correct_product<W, TRANSPOSED>(c, source, slot, inner, columns);
    }
  }
}

MLP_NAMESPACE_END
