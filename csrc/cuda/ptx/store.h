// A store of 16 bytes that stays one: nvcc takes a struct's, or uint4's, apart and stores its parts
// as they become ready where branches (the rare cases of division and square root) lie between.
#pragma once

#include "../simt.h"

MLP_NAMESPACE_BEGIN

#if defined(__CUDACC__)

MLP_DEVICE void store_16_bytes(void* global, uint4 x) {
  asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};" ::"l"(__cvta_generic_to_global(global)),
               "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
               : "memory");
}

#else

inline void store_16_bytes(void* global, uint4 x) {
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0) simt::die("a 16-byte store, unaligned");
  std::memcpy(global, &x, sizeof x);
}

#endif

MLP_NAMESPACE_END
