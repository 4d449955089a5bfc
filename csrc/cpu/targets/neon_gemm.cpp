// The products of neon.cpp.
#if defined(__aarch64__)
#define MLP_ISA neon
#include "../isa/region_begin.h"
#include "../isa/vec_neon.h"
#include "../kernels/all_gemm.h"
#include "../isa/region_end.h"
#endif
