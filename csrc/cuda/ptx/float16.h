// float16 to float32 and back, by the instruction on the device.
#pragma once

#include "../../common/half.h"
#include "../simt.h"

MLP_NAMESPACE_BEGIN

#if defined(__CUDACC__)

MLP_DEVICE float float16_to_float(Float16 x) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
}
MLP_DEVICE Float16 float_to_float16(float x) {
  Float16 value;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(value.bits) : "f"(x));
  return value;
}

#else

inline float float16_to_float(Float16 x) { return to_float(x); }
inline Float16 float_to_float16(float x) { return to_float16(x); }

#endif

MLP_NAMESPACE_END
