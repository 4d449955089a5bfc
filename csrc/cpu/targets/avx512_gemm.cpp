// The products of avx512.cpp.
#if defined(__x86_64__)
#define MLP_ISA avx512
#define MLP_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"
#include "../isa/region_begin.h"
#include "../isa/vec_avx512.h"
#include "../kernels/all_gemm.h"
#include "../isa/region_end.h"
#endif
