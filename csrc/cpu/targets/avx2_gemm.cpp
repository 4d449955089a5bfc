// The products of avx2.cpp.
#if defined(__x86_64__)
#define MLP_ISA avx2
#define MLP_TARGET "avx2,fma,f16c"
#include "../isa/region_begin.h"
#include "../isa/vec_avx2.h"
#include "../kernels/all_gemm.h"
#include "../isa/region_end.h"
#endif
