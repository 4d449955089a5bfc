// dW and db of a layer over the rows that a block has in shared memory: dW = dZ^T X, the rows being
// the contraction.
//
// A warp has a tile of dW, of 16 or 32 rows and columns (fused_dw_rows, fused_dw_columns);
// where there are more warps than tiles, groups of warps take different rows. db is the product
// with a column of ones, which the warps of the first columns work out beside.
//
// The sums of all rows that a block comes by stay in global memory (the second-level cache), in a
// partial of its own for each block and group: dW in blocks of 16 x 16 that are a warp's fragments,
// element (t, i, lane) of 2 x 4 x 32, then db. reduce_gradients adds the partials up.
#pragma once

#include "fused_mlp_product.cuh"

MLP_NAMESPACE_BEGIN

// Elements of dW in a partial; those of db come behind.
MLP_FN inline int gradient_elements(int out, int in) {
  return (out + 15) / 16 * 16 * ((in + 15) / 16 * 16);
}
MLP_FN inline int partial_elements(int out, int in) {
  return gradient_elements(out, in) + (out + 15) / 16 * 16;
}

template <class S, int W>
struct WeightGradient {
  using T = typename S::Type;
  static constexpr int kStride = fused_tile_stride(W);
  static constexpr int kRows = fused_dw_rows(W) / 16, kColumns = fused_dw_columns(W) / 16;

  const T *dz, *x;  // tiles of the block's rows
  int chunks;       // 16 rows each; this warp takes every groups-th from `group` on
  int group, groups;
  int row, column;  // where the warp's tile of dW begins
  int out, in;
  float* partial;
  bool first;  // nothing is in `partial` yet
  bool with_dw, with_db;

  float dw[kRows][kColumns][2][4];
  float db[kRows][4];

  MLP_DEVICE float* block_of(int r, int c) const {
    const int across = (in + 15) / 16;
    return partial + ((row / 16 + r) * across + column / 16 + c) * 256 + threadIdx.x % 32;
  }
  MLP_DEVICE bool has_row(int r) const { return row + 16 * r < out; }
  MLP_DEVICE bool has_column(int c) const { return with_dw && column + 16 * c < in; }
  MLP_DEVICE bool sums_rows() const { return with_db && column == 0; }
  // Lanes of q = 0 hold rows g and g + 8 of db, in the first and third of their sums.
  MLP_DEVICE float* db_of(int r, int below) const {
    return partial + gradient_elements(out, in) + row + 16 * r + 8 * below + this_lane().g;
  }

  MLP_DEVICE void load() {
    MLP_UNROLL
    for (int r = 0; r < kRows; ++r) {
      MLP_UNROLL
      for (int c = 0; c < kColumns; ++c) load_block(r, c, dw[r][c]);
      load_db(r, db[r]);
    }
  }
  MLP_DEVICE void load_block(int r, int c, float (&to)[2][4]) const {
    const bool there = !first && has_row(r) && has_column(c);
    MLP_UNROLL
    for (int i = 0; i < 8; ++i) to[i / 4][i % 4] = there ? block_of(r, c)[32 * i] : 0;
  }
  MLP_DEVICE void load_db(int r, float (&to)[4]) const {
    const bool there = !first && has_row(r) && sums_rows() && this_lane().q == 0;
    MLP_UNROLL
    for (int i = 0; i < 4; ++i) to[i] = there && i % 2 == 0 ? *db_of(r, i / 2) : 0;
  }
  MLP_DEVICE void store() const {
    MLP_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (!has_row(r)) continue;
      MLP_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        if (!has_column(c)) continue;
        MLP_UNROLL
        for (int i = 0; i < 8; ++i) block_of(r, c)[32 * i] = dw[r][c][i / 4][i % 4];
      }
      if (sums_rows() && this_lane().q == 0) {
        *db_of(r, 0) = db[r][0];
        *db_of(r, 1) = db[r][2];
      }
    }
  }

  template <class Scheme>
  MLP_DEVICE Left<Scheme> left(int chunk, int r) const {
    Left<Scheme> a;
    from_columns(a, dz + 16 * chunk * kStride + row + 16 * r, kStride);
    return a;
  }
  template <class Scheme>
  MLP_DEVICE Right<Scheme> right(int chunk, int c) const {
    Right<Scheme> b;
    from_columns(b, x + 16 * chunk * kStride + column + 16 * c, kStride);
    return b;
  }

  MLP_DEVICE void add() {
#pragma unroll 1
    for (int chunk = group; chunk < chunks; chunk += groups) {
      Left<S> a[kRows];
      MLP_UNROLL
      for (int r = 0; r < kRows; ++r) a[r] = left<S>(chunk, r);
      MLP_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        if (!has_column(c)) continue;
        const Right<S> b = right<S>(chunk, c);
        MLP_UNROLL
        for (int i = 0; i < 2 * kRows; ++i) accumulate(dw[i / 2][c][i % 2], a[i / 2], b, i % 2);
      }
      if (sums_rows()) {
        Right<S> ones;
        set_ones(ones);
        MLP_UNROLL
        for (int r = 0; r < kRows; ++r) accumulate(db[r], a[r], ones, 0);
      }
    }
  }

  MLP_DEVICE bool all_finite() const {
    bool all = true;
    MLP_UNROLL
    for (int r = 0; r < kRows; ++r) {
      float as_tiles[2 * kColumns + 1][4];
      MLP_UNROLL
      for (int i = 0; i < 4; ++i) {
        MLP_UNROLL
        for (int n = 0; n < 2 * kColumns; ++n) as_tiles[n][i] = dw[r][n / 2][n % 2][i];
        as_tiles[2 * kColumns][i] = db[r][i];
      }
      all = all && finite(as_tiles);
    }
    return all;
  }
  // What Full got wrong where operands are infinite: see correct_product.
  MLP_DEVICE void correct() {
    MLP_UNROLL
    for (int r = 0; r < kRows; ++r) {
      MLP_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        if (!has_column(c)) continue;
        float again[2][4];
        load_block(r, c, again);
        for (int chunk = group; chunk < chunks; chunk += groups) {
          const auto a = left<Plain>(chunk, r);
          const auto b = right<Plain>(chunk, c);
          MLP_UNROLL
          for (int t = 0; t < 2; ++t) multiply(again[t], a, b, t);
        }
        MLP_UNROLL
        for (int i = 0; i < 8; ++i) {
          float& sum = dw[r][c][i / 4][i % 4];
          if (!finite(sum)) sum = again[i / 4][i % 4];
        }
      }
      if (sums_rows()) {
        float again[4];
        load_db(r, again);
        Right<Plain> ones;
        set_ones(ones);
        for (int chunk = group; chunk < chunks; chunk += groups) {
          multiply(again, left<Plain>(chunk, r), ones, 0);
        }
        MLP_UNROLL
        for (int i = 0; i < 4; ++i) {
          if (!finite(db[r][i])) db[r][i] = again[i];
        }
      }
    }
  }
};

// Adds a layer's dW and db over the block's tiles to its partials. warps: a power of two.
template <class S, int W>
MLP_DEVICE void add_gradient(const typename S::Type* dz, const typename S::Type* x, int out, int in,
                             float* partials, int64_t partial_stride, bool first, bool with_dw,
                             bool with_db) {
  constexpr int kTiles = fused_dw_tiles(W), kAcross = W / fused_dw_columns(W);
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
  WeightGradient<S, W> gradient;
  gradient.dz = dz, gradient.x = x;
  gradient.chunks = warps;
  gradient.groups = warps > kTiles ? warps / kTiles : 1;
  gradient.group = warp / kTiles;
  gradient.out = out, gradient.in = in;
  gradient.partial = partials + gradient.group * partial_stride;
  gradient.first = first;
  gradient.with_dw = with_dw, gradient.with_db = with_db;
#pragma unroll 1
  for (int tile = warp % kTiles; tile < kTiles; tile += warps) {
    gradient.row = tile / kAcross * fused_dw_rows(W);
    gradient.column = tile % kAcross * fused_dw_columns(W);
    if (gradient.row >= out || gradient.column >= in) continue;
    gradient.load();
    gradient.add();
    if constexpr (S::kPromotes) {
      if (__any_sync(~0u, !gradient.all_finite())) gradient.correct();
    }
    gradient.store();
  }
}

MLP_NAMESPACE_END
