// The operands of the fused MLP's products, 16 of the contraction at a time, and the product of two
// of them, by scheme: Full, Tf32 and Plain for float32, Half for the 16-bit types.
//
// A warp's accumulators for 16 rows and columns 8n.. are c[n][4]: with g = lane / 4, q = lane % 4
// elements (g, 2q), (g, 2q+1), (g+8, 2q), (g+8, 2q+1). They become the left operand of the next
// product in the lane where they are:
//   16 bits: a register of A holds two neighbours along k, just what two accumulators are.
//   tf32: slot q of the k-group of A carries column 2q, and slot q+4 column 2q+1. A sum does not
//   mind in which order k comes, if B does the same: its lane reads columns 2q, 2q+1 of its row of
//   W. Shared memory holds a row's 16 columns in the order 0 1 8 9 | 2 3 10 11 | ..., so that what
//   a lane needs of two k-groups is 16 bytes.
//
// Full: x = high + low, each of 11 bits: 22 of float32's 24. Tensor cores truncate where float32
// arithmetic rounds, and what they drop adds up: so low high + high low and high high are summed
// apart and from zero, for 16 and 8 of the contraction, and added to the total in float32. Infinity
// makes low a NaN, and an infinite high times a zero low too: a result that is not finite is worked
// out again by Plain, which takes float32 as the hardware truncates it.
#pragma once

#include "fused_mlp_plan.h"
#include "../pack.h"
#include "../ptx/ldmatrix.h"
#include "../ptx/mma.h"
#include "../ptx/pairs.h"

MLP_NAMESPACE_BEGIN

struct Lane {
  int g, q;
};
MLP_DEVICE Lane this_lane() {
  const int lane = threadIdx.x % 32;
  return {lane / 4, lane % 4};
}

template <int N>
struct Parts {
  uint32_t high[N];
};
template <int N>
struct SplitParts {
  uint32_t high[N], low[N];
};

// Where column c of the contraction lies in a row of float32 weights.
MLP_DEVICE int permuted(int c) { return c / 16 * 16 + c % 8 / 2 * 4 + c % 16 / 8 * 2 + c % 2; }

struct Full {
  using Type = float;
  template <int N>
  using Operand = SplitParts<N>;
  static constexpr bool kPromotes = true;

  template <int N>
  MLP_DEVICE static void set(Operand<N>& to, int i, float x) {
    to.high[i] = to_tf32(x);
    // Half of the last place that the hardware reads: it truncates to the nearest.
    to.low[i] = __float_as_uint(x - __uint_as_float(to.high[i])) + 0x1000u;
  }
  // The large products apart and from zero, so that each is truncated once.
  MLP_DEVICE static void multiply(float (&c)[4], const Operand<4> (&a)[2],
                                  const Operand<2> (&b)[2]) {
    float large[2][4] = {};
    MLP_UNROLL
    for (int half = 0; half < 2; ++half) {
      mma_tf32(c, a[half].low, b[half].high);
      mma_tf32(c, a[half].high, b[half].low);
      mma_tf32(large[half], a[half].high, b[half].high);
    }
    MLP_UNROLL
    for (int i = 0; i < 4; ++i) c[i] += large[0][i] + large[1][i];
  }
};

template <bool ROUNDED>
struct OneProduct {
  using Type = float;
  template <int N>
  using Operand = Parts<N>;
  static constexpr bool kPromotes = false;

  template <int N>
  MLP_DEVICE static void set(Operand<N>& to, int i, float x) {
    to.high[i] = ROUNDED ? to_tf32(x) : __float_as_uint(x);
  }
  MLP_DEVICE static void multiply(float (&c)[4], const Operand<4> (&a)[2],
                                  const Operand<2> (&b)[2]) {
    MLP_UNROLL
    for (int half = 0; half < 2; ++half) mma_tf32(c, a[half].high, b[half].high);
  }
};
using Tf32 = OneProduct<true>;
using Plain = OneProduct<false>;

template <class T>
struct Half {
  using Type = T;
  static constexpr bool kPromotes = false;
};

// The left operand, 16 x 16.
template <class S>
struct Left {
  typename S::template Operand<4> half[2];
};
// The right operand, 16 x 8, twice: columns 0..7 and 8..15.
template <class S>
struct Right {
  typename S::template Operand<2> half[2][2];  // [columns][half of the contraction]
};
template <class T>
struct Left<Half<T>> {
  uint32_t bits[4];
};
template <class T>
struct Right<Half<T>> {
  uint32_t bits[4];
};

// c += left right, of the t-th 8 columns.
template <class S>
MLP_DEVICE void multiply(float (&c)[4], const Left<S>& left, const Right<S>& right, int t) {
  S::multiply(c, left.half, right.half[t]);
}
template <class T>
MLP_DEVICE void multiply(float (&c)[4], const Left<Half<T>>& left, const Right<Half<T>>& right,
                         int t) {
  const uint32_t b[2] = {right.bits[2 * t], right.bits[2 * t + 1]};
  mma_16bit(T{}, c, left.bits, b);
}
// The same, promoted where the scheme asks for it.
template <class S>
MLP_DEVICE void accumulate(float (&sum)[4], const Left<S>& left, const Right<S>& right, int t) {
  if constexpr (S::kPromotes) {
    float c[4] = {};
    multiply(c, left, right, t);
    MLP_UNROLL
    for (int i = 0; i < 4; ++i) sum[i] += c[i];
  } else {
    multiply(sum, left, right, t);
  }
}

// 16 columns of accumulators as the left operand.
template <class S>
MLP_DEVICE void from_accumulators(Left<S>& left, const float (&c0)[4], const float (&c1)[4]) {
  MLP_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int element = i % 2 * 2 + i / 2;  // (g, 2q), (g+8, 2q), (g, 2q+1), (g+8, 2q+1)
    S::set(left.half[0], i, c0[element]);
    S::set(left.half[1], i, c1[element]);
  }
}
template <class T>
MLP_DEVICE void from_accumulators(Left<Half<T>>& left, const float (&c0)[4], const float (&c1)[4]) {
  left.bits[0] = pack_pair(T{}, c0[0], c0[1]);
  left.bits[1] = pack_pair(T{}, c0[2], c0[3]);
  left.bits[2] = pack_pair(T{}, c1[0], c1[1]);
  left.bits[3] = pack_pair(T{}, c1[2], c1[3]);
}

// 16 x 16 of weights, as fill_weights lays them out: `chunk` of the contraction, `pair` of 8
// columns of the result. TRANSPOSED: the contraction runs over the rows of W.
template <int W, bool TRANSPOSED, class S>
MLP_DEVICE void from_weights(Right<S>& right, const float* weights, int chunk, int pair) {
  const auto [g, q] = this_lane();
  MLP_UNROLL
  for (int t = 0; t < 2; ++t) {
    const float* row = weights + (16 * pair + 8 * t + g) * fused_weight_stride<float>(W);
    const auto four = *reinterpret_cast<const Pack<float, 4>*>(row + 16 * chunk + 4 * q);
    MLP_UNROLL
    for (int i = 0; i < 4; ++i) S::set(right.half[t][i / 2], i % 2, four.at[i]);
  }
}
template <int W, bool TRANSPOSED, class T>
MLP_DEVICE void from_weights(Right<Half<T>>& right, const T* weights, int chunk, int pair) {
  const int lane = threadIdx.x % 32;
  const int result = 16 * pair + lane / 16 * 8, inner = 16 * chunk + lane / 8 % 2 * 8;
  constexpr int kStride = fused_weight_stride<T>(W);
  ldmatrix<TRANSPOSED>(right.bits, TRANSPOSED ? weights + (inner + lane % 8) * kStride + result
                                              : weights + (result + lane % 8) * kStride + inner);
}

// The operands of dW = dZ^T X from tiles of dZ and X in shared memory, `rows` being where 16 rows,
// the contraction, begin: 16 columns of either.
template <class S>
MLP_DEVICE void from_columns(Left<S>& left, const float* rows, int stride) {
  const auto [g, q] = this_lane();
  MLP_UNROLL
  for (int i = 0; i < 8; ++i) {
    S::set(left.half[i / 4], i % 4, rows[(i / 2 * 4 + q) * stride + i % 2 * 8 + g]);
  }
}
template <class T>
MLP_DEVICE void from_columns(Left<Half<T>>& left, const T* rows, int stride) {
  const int lane = threadIdx.x % 32;  // matrices: (k, m), (k, m+8), (k+8, m), (k+8, m+8)
  ldmatrix<true>(left.bits, rows + (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 8);
}
template <class S>
MLP_DEVICE void from_columns(Right<S>& right, const float* rows, int stride) {
  const auto [g, q] = this_lane();
  MLP_UNROLL
  for (int i = 0; i < 8; ++i) {
    S::set(right.half[i / 4][i % 4 / 2], i % 2, rows[(i % 4 * 4 + q) * stride + i / 4 * 8 + g]);
  }
}
template <class T>
MLP_DEVICE void from_columns(Right<Half<T>>& right, const T* rows, int stride) {
  const int lane = threadIdx.x % 32;  // matrices: (k, n), (k+8, n), (k, n+8), (k+8, n+8)
  ldmatrix<true>(right.bits, rows + lane % 16 * stride + lane / 16 * 8);
}

// A right operand of ones: the product is the sum over the contraction, in every column.
template <class S>
MLP_DEVICE void set_ones(Right<S>& right) {
  MLP_UNROLL
  for (int i = 0; i < 4; ++i) S::set(right.half[0][i / 2], i % 2, 1.0f);
}
template <class T>
MLP_DEVICE void set_ones(Right<Half<T>>& right) {
  right.bits[0] = right.bits[1] = pack_pair(T{}, 1.0f, 1.0f);
}

MLP_NAMESPACE_END
