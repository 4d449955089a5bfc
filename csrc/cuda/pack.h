// N elements that are loaded and stored by one instruction of up to 16 bytes, and what elements are
// computed in.
#pragma once

#include "../common/half.h"
#include "ptx/float16.h"
#include "simt.h"

MLP_NAMESPACE_BEGIN

template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};

// How many elements 16 bytes hold.
template <class T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));

template <class T>
struct ComputeTypeOf {
  using type = float;
};
template <>
struct ComputeTypeOf<double> {
  using type = double;
};
// float64 is computed in itself, everything else in float32.
template <class T>
using ComputeType = typename ComputeTypeOf<T>::type;

MLP_DEVICE float to_compute(float x) { return x; }
MLP_DEVICE double to_compute(double x) { return x; }
MLP_DEVICE float to_compute(BFloat16 x) { return to_float(x); }
MLP_DEVICE float to_compute(Float16 x) { return float16_to_float(x); }

template <class T>
MLP_DEVICE T from_compute(ComputeType<T> x) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return to_bfloat16(x);
  } else if constexpr (std::is_same_v<T, Float16>) {
    return float_to_float16(x);
  } else {
    return x;
  }
}

// Whether rows that begin at p and then every `stride` elements may be read in packs.
template <class T>
inline bool packs(const void* p, int64_t stride) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride % kPack<T> == 0;
}

MLP_NAMESPACE_END
