// What a warp does with one stage in shared memory: sum += A B over 128 bytes of K.
//
// float32, Precision::full ("3xTF32"): each operand is split into hi + lo of 11 significant bits
// each, and hi hi + hi lo + lo hi are summed; the rest is below 2^-22. Tensor cores truncate each
// sum to float32, which over K = 4096 would cost two digits; so a sum begins anew every 8 k and is
// added to a float32 register that rounds ("promotion"). Relative errors with that model of tensor
// cores (tests/simt, normal numbers), and of one float32 fma after another:
//
//   K                      8        32       256      1024     4096
//   promoted every 8 k     9.3e-8   1.0e-7   1.4e-7   2.2e-7   4.2e-7
//   promoted every 32 k    9.3e-8   2.9e-7   2.9e-7   3.1e-7   3.5e-7
//   float32 fma            5.4e-8   1.0e-7   2.8e-7   5.8e-7   1.1e-6
//
// Every 8 k because of the second column: no error is twice that of float32 arithmetic. It costs
// one addition for each three products, and saves registers: the sums begun live for two tiles of
// rows.
//
// Split: hi = x rounded to 11 bits, by adding half a unit to the bits and clearing the rest; lo =
// x - hi, exact, of 12 bits, the last of which tensor cores do not read (so published measurements;
// PTX leaves it open): one unit of float32 in one case of four, up or down as lo's sign is. Three
// instructions an element. An Inf, a NaN, or a number above 2^128 (1 - 2^-12) gives lo = NaN or
// Inf, so any sum that it enters shows as one that is not finite, and such tiles are summed again
// by float32 arithmetic (exact_sums): Inf and NaN as IEEE 754 has them, several times slower. To
// leave lo = 0 there would not do: Inf times the zero lo of a power of two is NaN. Below 2^-113
// numbers lose digits, as lo is denormal: an absolute error of 2^-136 times the other operand.
//
// Precision::tf32: operands rounded to 11 bits, one product. 16-bit types: one exact product. These
// are not promoted: truncation costs 5e-6 at K = 4096, the rounding of operands or results more.
#pragma once

#include "gemm.h"
#include "gemm_fragments.cuh"
#include "../ptx/mma.h"

MLP_NAMESPACE_BEGIN

template <class T, Precision P>
constexpr bool kSplits = std::is_same_v<T, float> && P == Precision::full;

struct TwoTf32 {
  uint32_t hi, lo;
};

MLP_DEVICE TwoTf32 split_tf32(uint32_t bits) {
  const uint32_t hi = (bits + 0x1000u) & 0xffffe000u;
  return {hi, __float_as_uint(__uint_as_float(bits) - __uint_as_float(hi))};
}

// sum(16 MT x 8 NT) += A B over 32 bytes of K. b[j]: of tiles 2j and 2j + 1.
template <class T, Precision P, int MT, int NT>
MLP_DEVICE void multiply(float (&sum)[MT][NT][4], const uint32_t (&a)[MT][4],
                         const uint32_t (&b)[NT / 2][4]) {
  if constexpr (kSplits<T, P>) {
    uint32_t b_hi[NT][2], b_lo[NT][2];
    MLP_UNROLL
    for (int i = 0; i < 2 * NT; ++i) {
      const TwoTf32 x = split_tf32(b[i / 4][i % 4]);
      b_hi[i / 2][i % 2] = x.hi, b_lo[i / 2][i % 2] = x.lo;
    }
    MLP_UNROLL
    for (int mt = 0; mt < MT; mt += 2) {
      uint32_t a_hi[2][4], a_lo[2][4];
      MLP_UNROLL
      for (int i = 0; i < 8; ++i) {
        const TwoTf32 x = split_tf32(a[mt + i / 4][i % 4]);
        a_hi[i / 4][i % 4] = x.hi, a_lo[i / 4][i % 4] = x.lo;
      }
      // The small parts first; eight products that do not wait for each other.
      float part[2 * NT][4] = {};
      MLP_UNROLL
      for (int i = 0; i < 2 * NT; ++i) mma_tf32(part[i], a_lo[i / NT], b_hi[i % NT]);
      MLP_UNROLL
      for (int i = 0; i < 2 * NT; ++i) mma_tf32(part[i], a_hi[i / NT], b_lo[i % NT]);
      MLP_UNROLL
      for (int i = 0; i < 2 * NT; ++i) mma_tf32(part[i], a_hi[i / NT], b_hi[i % NT]);
      MLP_UNROLL
      for (int i = 0; i < 8 * NT; ++i)
        sum[mt + i / 4 / NT][i / 4 % NT][i % 4] += part[i / 4][i % 4];
    }
  } else if constexpr (std::is_same_v<T, float>) {
    uint32_t a_hi[MT][4], b_hi[NT][2];
    MLP_UNROLL
    for (int i = 0; i < 4 * MT; ++i) a_hi[i / 4][i % 4] = to_tf32(__uint_as_float(a[i / 4][i % 4]));
    MLP_UNROLL
    for (int i = 0; i < 2 * NT; ++i) b_hi[i / 2][i % 2] = to_tf32(__uint_as_float(b[i / 4][i % 4]));
    MLP_UNROLL
    for (int i = 0; i < MT * NT; ++i) mma_tf32(sum[i / NT][i % NT], a_hi[i / NT], b_hi[i % NT]);
  } else {
    MLP_UNROLL
    for (int i = 0; i < MT * NT; ++i) {
      const int n = i % NT;
      const uint32_t of_b[2] = {b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]};
      mma_16bit(T{}, sum[i / NT][n], a[i / NT], of_b);
    }
  }
}

// The whole stage. Twice 32 bytes unrolled: the compiler then loads and splits the second's
// fragments while the first's are multiplied; the whole stage unrolled spills.
template <class T, Precision P, int MT, int NT, class FragmentsA, class FragmentsB>
MLP_DEVICE void multiply_stage(float (&sum)[MT][NT][4], const FragmentsA& of_a,
                               const FragmentsB& of_b, const unsigned char* stage_a,
                               const unsigned char* stage_b) {
#pragma unroll 2
  for (int kk = 0; kk < kLine / 32; ++kk) {
    uint32_t a[MT][4], b[NT / 2][4];
    MLP_UNROLL
    for (int i = 0; i < NT / 2; ++i) of_b.load(b[i], stage_b, i, kk);
    MLP_UNROLL
    for (int i = 0; i < MT; ++i) of_a.load(a[i], stage_a, i, kk);
    multiply<T, P, MT, NT>(sum, a, b);
  }
}

// The same sums by one fma after another, straight from global memory. m, n: of sum[0][0][0].
template <int MT, int NT>
MLP_DEVICE void exact_sums(float (&sum)[MT][NT][4], const GemmArgs<float>& g, int64_t m, int64_t n,
                           int64_t k, int64_t k_end) {
  MLP_UNROLL
  for (int i = 0; i < MT * NT * 4; ++i) sum[i / 4 / NT][i / 4 % NT][i % 4] = 0;
#pragma unroll 1
  for (; k < k_end; ++k) {
    float a[2 * MT], b[2 * NT];
    MLP_UNROLL
    for (int i = 0; i < 2 * MT; ++i) {
      const int64_t row = m + 8 * i;
      a[i] = row < g.M ? g.a[row * g.a_row + k * g.a_col] : 0.0f;
    }
    MLP_UNROLL
    for (int i = 0; i < 2 * NT; ++i) {
      const int64_t column = n + i / 2 * 8 + i % 2;
      b[i] = column < g.N ? g.b[k * g.b_row + column * g.b_col] : 0.0f;
    }
    MLP_UNROLL
    for (int i = 0; i < MT * NT * 4; ++i) {
      float& s = sum[i / 4 / NT][i / 4 % NT][i % 4];
      s = ::fmaf(a[i / 4 / NT * 2 + i % 4 / 2], b[i / 4 % NT * 2 + i % 2], s);
    }
  }
}

MLP_NAMESPACE_END
