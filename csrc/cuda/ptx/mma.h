// mma.sync: D(16 x 8) += A(16 x K, rows) B(K x 8, columns), sums in float32.
//
// With g = lane / 4, q = lane % 4 a lane holds of C and D (g, 2q), (g, 2q+1), (g+8, 2q), (g+8,
// 2q+1); of A for tf32 (g, q), (g+8, q), (g, q+4), (g+8, q+4), of B (q, g), (q+4, g). For 16-bit
// types each register holds two elements that follow each other along K: A (g, 2q), (g+8, 2q), (g,
// 2q+8), (g+8, 2q+8), B (2q, g), (2q+8, g). Source: PTX ISA, matrix fragments of mma.m16n8k8 and
// m16n8k16.
//
// On the host: products exact, their sum with C exact to double precision and then truncated to
// float32, which is what published measurements say that tensor cores do.
#pragma once

#include "../../common/half.h"
#include "../simt.h"

MLP_NAMESPACE_BEGIN

#if defined(__CUDACC__)

MLP_DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

MLP_DEVICE void mma_16bit(BFloat16, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

MLP_DEVICE void mma_16bit(Float16, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The nearest tf32, ties away from zero, as float bits.
MLP_DEVICE uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

#else

struct HostFragments {
  uint32_t a[4], b[2];
};

inline float truncated(double sum) {
  float value = static_cast<float>(sum);
  if (std::fabs(static_cast<double>(value)) > std::fabs(sum) && std::isfinite(sum)) {
    value = std::nextafter(value, 0.0f);
  }
  return value;
}

// element(register bits, i): the i-th element of a register of PER elements.
template <int K, int PER, class Element>
void mma_on_host(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Element element) {
  HostFragments mine;
  std::memcpy(mine.a, a, sizeof mine.a);
  std::memcpy(mine.b, b, sizeof mine.b);
  const unsigned char* all = simt::exchange(&mine, sizeof mine, ~0u, "mma.sync");
  const unsigned g = simt::lane() / 4, q = simt::lane() % 4;
  // This lane's two rows of A and two columns of B, from the four lanes that hold each. K is in
  // halves of 4 lanes' registers of PER elements.
  double row[2][K], column[2][K];
  for (unsigned owner = 0; owner < 4; ++owner) {
    const auto of_a = simt::deposit_of<HostFragments>(all, 4 * g + owner);
    const HostFragments of_b[2] = {simt::deposit_of<HostFragments>(all, 4 * (2 * q) + owner),
                                   simt::deposit_of<HostFragments>(all, 4 * (2 * q + 1) + owner)};
    for (unsigned half = 0; half < 2; ++half) {
      for (unsigned part = 0; part < PER; ++part) {
        const unsigned k = half * 4 * PER + owner * PER + part;
        for (unsigned i = 0; i < 2; ++i) {
          row[i][k] = static_cast<double>(element(of_a.a[i + 2 * half], part));
          column[i][k] = static_cast<double>(element(of_b[i].b[half], part));
        }
      }
    }
  }
  for (unsigned i = 0; i < 4; ++i) {
    double sum = d[i];
    for (unsigned k = 0; k < K; ++k) sum += row[i / 2][k] * column[i % 2][k];
    d[i] = truncated(sum);
  }
}

inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_on_host<8, 1>(d, a, b, [](uint32_t bits, unsigned) {
    return __uint_as_float(bits & 0xffffe000u);  // the hardware reads no more
  });
}

template <class Half>
void mma_16bit(Half, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_on_host<16, 2>(d, a, b, [](uint32_t bits, unsigned i) {
    return to_float(Half{static_cast<uint16_t>(bits >> (16 * i))});
  });
}

inline uint32_t to_tf32(float x) {
  uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7f800000u) != 0x7f800000u) bits += 0x1000u;
  return bits & 0xffffe000u;
}

#endif

MLP_NAMESPACE_END
