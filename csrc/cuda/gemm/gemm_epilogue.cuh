// What follows a product: bias, activation or derivative, stores, column sums, of a rectangle of C
// whose sums lie in memory: a block's tile in shared memory, or the parts of split K in global
// memory, which are added in order.
//
// The accumulators pass through memory so that this is a function of its own, called where no
// register of the product is alive: its ten activations in two directions cost the products no
// registers and are compiled once for all layouts; and rows leave in packs of four columns,
// neighbouring threads side by side. A thread keeps its four columns for all its rows, so it sums
// its part of the column sums in registers. Its loads of `saved` are two rows ahead.
#pragma once

#include "gemm.h"
#include "../pack.h"
#include "../vec.h"

#include "../../common/activation.h"

MLP_NAMESPACE_BEGIN

template <class T>
struct GemmParams {
  GemmArgs<T> g;  // c is not null
  bool a_in_chunks, b_in_chunks, c_in_packs, activated_in_packs, saved_in_packs;
  unsigned tiles_m, tiles_n;
  int split;  // parts of K, each part_k long
  int64_t part_k;
  float* parts;         // split x M x ld_parts; null where split is 1
  int64_t ld_parts;     // N up to a multiple of 4
  float* column_parts;  // blocks of rows x N; null where one block has all rows
};

// Element (m, n) of a rectangle is the sum of p[i * stride + m * ld + n] over i < count, in order.
struct Addends {
  const float* p;
  int64_t ld;
  int count;
  int64_t stride;
};

// The first n of four elements; `whole`: rows begin on as many bytes as four elements have.
template <class T>
MLP_DEVICE Pack<T, 4> load_four(const T* p, int n, bool whole) {
  if (whole && n == 4) return *reinterpret_cast<const Pack<T, 4>*>(p);
  Pack<T, 4> four;
  MLP_UNROLL
  for (int i = 0; i < 4; ++i) four.at[i] = i < n ? p[i] : T{};
  return four;
}
template <class T>
MLP_DEVICE void store_four(T* p, const Pack<T, 4>& four, int n, bool whole) {
  if (whole && n == 4) {
    *reinterpret_cast<Pack<T, 4>*>(p) = four;
    return;
  }
  MLP_UNROLL
  for (int i = 0; i < 4; ++i) {
    if (i < n) p[i] = four.at[i];
  }
}

// f of what a T holds, or its derivative at saved times it.
template <class T>
MLP_DEVICE void activate_four(Activation activation, Pack<T, 4>& x) {
  switch (activation) {
#define MLP_CASE(name, Functor, saves)                                                \
  case Activation::name:                                                              \
    MLP_UNROLL                                                                        \
    for (int i = 0; i < 4; ++i) {                                                     \
      x.at[i] = from_compute<T>(Functor::forward(Vec<float>(to_compute(x.at[i]))).v); \
    }                                                                                 \
    return;
    MLP_FOR_EACH_ACTIVATION(MLP_CASE)
#undef MLP_CASE
  }
}
template <class T>
MLP_DEVICE void differentiate_four(Activation activation, Pack<T, 4>& x, const Pack<T, 4>& saved) {
  switch (activation) {
#define MLP_CASE(name, Functor, saves)                                                            \
  case Activation::name:                                                                          \
    MLP_UNROLL                                                                                    \
    for (int i = 0; i < 4; ++i) {                                                                 \
      x.at[i] = from_compute<T>(                                                                  \
          Functor::backward(Vec<float>(to_compute(x.at[i])), Vec<float>(to_compute(saved.at[i]))) \
              .v);                                                                                \
    }                                                                                             \
    return;
    MLP_FOR_EACH_ACTIVATION(MLP_CASE)
#undef MLP_CASE
  }
}

// The rectangle of ROWS x COLUMNS at (m0, n0), some of it perhaps outside C, by all THREADS of the
// block, COLUMNS / 4 of which take one row. scratch: 4 THREADS floats of shared memory. row_block:
// which block of rows this is.
template <class T, int ROWS, int COLUMNS, int THREADS>
MLP_DEVICE_CALL void finish(const GemmParams<T>& p, Addends sums, int64_t m0, int64_t n0,
                            float* scratch, int64_t row_block) {
  constexpr int kAhead = 2, kAcross = COLUMNS / 4, kLanes = THREADS / kAcross;
  static_assert(THREADS % kAcross == 0, "whole rows");
  const GemmArgs<T>& g = p.g;
  const int column = int(threadIdx.x) % kAcross * 4, lane = int(threadIdx.x) / kAcross;
  const int64_t n = n0 + column;
  const int here = g.N - n < 4 ? int(g.N - n) : 4;
  const int last = here <= 0 ? 0 : g.M - m0 < ROWS ? int(g.M - m0) : ROWS;

  float bias[4] = {}, column_sum[4] = {};
  Pack<T, 4> ahead[kAhead];
  MLP_UNROLL
  for (int i = 0; i < 4; ++i) {
    if (g.bias && i < here) bias[i] = to_compute(g.bias[n + i]);
  }
  const auto saved_at = [&](int r) {
    return r < last ? load_four(g.saved + (m0 + r) * g.ld_saved + n, here, p.saved_in_packs)
                    : Pack<T, 4>{};
  };
  if (g.saved) {
    MLP_UNROLL
    for (int i = 0; i < kAhead; ++i) ahead[i] = saved_at(lane + i * kLanes);
  }
#pragma unroll 1
  for (int r = lane; r < last; r += kLanes) {
    Pack<float, 4> sum = {};
    const float* from = sums.p + r * sums.ld + column;
#pragma unroll 4
    for (int part = 0; part < sums.count; ++part, from += sums.stride) {
      const auto addend = *reinterpret_cast<const Pack<float, 4>*>(from);
      MLP_UNROLL
      for (int i = 0; i < 4; ++i) sum.at[i] = part == 0 ? addend.at[i] : sum.at[i] + addend.at[i];
    }
    Pack<T, 4> x;
    MLP_UNROLL
    for (int i = 0; i < 4; ++i) x.at[i] = from_compute<T>(sum.at[i] + bias[i]);
    T* const to = g.c + (m0 + r) * g.ldc + n;
    if (g.saved) {
      const Pack<T, 4> saved = ahead[0];
      MLP_UNROLL
      for (int i = 1; i < kAhead; ++i) ahead[i - 1] = ahead[i];
      ahead[kAhead - 1] = saved_at(r + kAhead * kLanes);
      differentiate_four(g.activation, x, saved);
    } else if (!g.activated) {
      activate_four(g.activation, x);
    }
    store_four(to, x, here, p.c_in_packs);
    MLP_UNROLL
    for (int i = 0; i < 4; ++i) column_sum[i] += to_compute(x.at[i]);
    if (g.activated) {
      activate_four(g.activation, x);
      store_four(g.activated + (m0 + r) * g.ld_activated + n, x, here, p.activated_in_packs);
    }
  }
  if (!g.column_sum) return;

  MLP_UNROLL
  for (int i = 0; i < 4; ++i) scratch[lane * COLUMNS + column + i] = column_sum[i];
  __syncthreads();
  for (int c = int(threadIdx.x); c < COLUMNS && n0 + c < g.N; c += THREADS) {
    float sum = 0;
    for (int l = 0; l < kLanes; ++l) sum += scratch[l * COLUMNS + c];
    if (p.column_parts) {
      p.column_parts[row_block * g.N + n0 + c] = sum;
    } else {
      g.column_sum[n0 + c] = from_compute<T>(sum);
    }
  }
}

MLP_NAMESPACE_END
