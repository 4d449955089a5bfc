// Two float32 to two 16-bit elements in a register, round to nearest even, the first in its low
// half; and back.
#pragma once

#include "../../common/half.h"
#include "../simt.h"
#include "float16.h"

MLP_NAMESPACE_BEGIN

#if defined(__CUDACC__)

MLP_DEVICE uint32_t pack_pair(BFloat16, float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
MLP_DEVICE uint32_t pack_pair(Float16, float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

#else

inline uint32_t pack_pair(BFloat16, float low, float high) {
  return to_bfloat16(low).bits | uint32_t{to_bfloat16(high).bits} << 16;
}
inline uint32_t pack_pair(Float16, float low, float high) {
  return to_float16(low).bits | uint32_t{to_float16(high).bits} << 16;
}

#endif

MLP_DEVICE void unpack_pair(BFloat16, uint32_t pair, float& low, float& high) {
  low = __uint_as_float(pair << 16);
  high = __uint_as_float(pair & 0xffff0000u);
}
MLP_DEVICE void unpack_pair(Float16, uint32_t pair, float& low, float& high) {
  low = float16_to_float(Float16{static_cast<uint16_t>(pair)});
  high = float16_to_float(Float16{static_cast<uint16_t>(pair >> 16)});
}

MLP_NAMESPACE_END
