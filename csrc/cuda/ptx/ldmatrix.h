// ldmatrix: four 8 x 8 matrices of 16-bit elements from shared memory into a warp's registers, in
// the layout of mma's fragments. Lane l gives the address (16-byte aligned) of row l % 8 of matrix
// l / 8; then with g = lane / 4, q = lane % 4 register i of a lane holds elements (g, 2q), (g,
// 2q+1) of matrix i, or (2q, g), (2q+1, g) with .trans.
#pragma once

#include "../simt.h"

MLP_NAMESPACE_BEGIN

#if defined(__CUDACC__)

template <bool TRANSPOSED>
MLP_DEVICE void ldmatrix(uint32_t (&r)[4], const void* row) {
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (TRANSPOSED) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
  }
}

#else

template <bool TRANSPOSED>
void ldmatrix(uint32_t (&r)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) simt::die("ldmatrix on an unaligned row");
  struct Row {
    uint16_t element[8];
  } mine;
  std::memcpy(&mine, row, sizeof mine);
  const unsigned char* all = simt::exchange(&mine, sizeof mine, ~0u, "ldmatrix");
  const unsigned g = simt::lane() / 4, q = simt::lane() % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const auto element = [&](unsigned y, unsigned x) -> uint32_t {
      return simt::deposit_of<Row>(all, 8 * i + y).element[x];
    };
    r[i] = TRANSPOSED ? element(2 * q, g) | element(2 * q + 1, g) << 16
                      : element(g, 2 * q) | element(g, 2 * q + 1) << 16;
  }
}

#endif

MLP_NAMESPACE_END
