// How a block of threads lies over a (rows, columns) matrix that is read once: `lanes` threads side
// by side, each with N columns, and threads / lanes rows at a time. Few columns get few lanes, so
// that ten columns do not leave most of a warp idle.
//
//   lanes = 4, N = 4:   row 0   | t0 t0 t0 t0 | t1 t1 t1 t1 | t2 ...   16-byte accesses
//                       row 1   | t4 t4 t4 t4 | ...
//
// Kernels ask for one block at least in __launch_bounds__: without a number nvcc 13.0 spills a few
// registers for the sake of occupancy.
//
// N is what 16 bytes hold where all rows are aligned and hold whole packs; otherwise it is 1, whose
// kernels are apart: a load of N single elements would hold N addresses and predicates.
#pragma once

#include "../pack.h"
#include "../simt.h"

MLP_NAMESPACE_BEGIN

inline int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A power of two up to 32. n: the columns of a thread.
inline int lanes_for(int64_t columns, int n) {
  int lanes = 1;
  while (lanes < 32 && int64_t{lanes} * n < columns) lanes *= 2;
  return lanes;
}

// Columns of a thread in packed kernels. One float64 a thread fills the memory's sectors too.
template <class T>
constexpr int kColumns = std::is_same_v<T, double> ? 1 : kPack<T>;

template <class T>
bool packs_columns(const void* p, int64_t ld, int64_t columns) {
  return columns % kColumns<T> == 0 && packs<T>(p, ld);
}

// N elements in as few registers as they have bytes: nvcc gives each uint16_t of a Pack one of its
// own, which for bfloat16 is twice as many.
template <class T, int N, bool = sizeof(T) == 2 && N % 2 == 0>
struct alignas(sizeof(T) * N) Chunk {
  T at[N];

  MLP_DEVICE T get(int j) const { return at[j]; }
  MLP_DEVICE void set(int j, T x) { at[j] = x; }
};
template <class T, int N>
struct alignas(sizeof(T) * N) Chunk<T, N, true> {
  uint32_t words[N / 2];

  MLP_DEVICE T get(int j) const { return T{static_cast<uint16_t>(words[j / 2] >> (16 * (j % 2)))}; }
  MLP_DEVICE void set(int j, T x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << (16 * (j % 2));
    words[j / 2] = (words[j / 2] & (j % 2 == 0 ? 0xffff0000u : 0xffffu)) | bits;
  }
};

template <class T, int N>
MLP_DEVICE Chunk<T, N> load_chunk(const T* p) {
  return *reinterpret_cast<const Chunk<T, N>*>(p);
}
// In pieces of up to 16 bytes.
template <class C, int N>
MLP_DEVICE void store_values(C* p, const C (&values)[N]) {
  constexpr int kPiece = N < kPack<C> ? N : kPack<C>;
  MLP_UNROLL
  for (int i = 0; i < N; i += kPiece) {
    Pack<C, kPiece> piece;
    MLP_UNROLL
    for (int j = 0; j < kPiece; ++j) piece.at[j] = values[i + j];
    *reinterpret_cast<Pack<C, kPiece>*>(p + i) = piece;
  }
}
template <class T, int N>
MLP_DEVICE void store_chunk(T* p, const Chunk<T, N>& values) {
  *reinterpret_cast<Chunk<T, N>*>(p) = values;
}

MLP_NAMESPACE_END
