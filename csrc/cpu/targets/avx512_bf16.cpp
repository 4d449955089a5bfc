// AVX-512 with BF16 dot products: Cooper Lake (2020), Sapphire Rapids and Zen 4 (2022). Only the
// bfloat16 kernels are made here; dispatch.cpp joins them to the table of avx512.
#if defined(__x86_64__)
#define MLP_ISA avx512_bf16
#define MLP_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c"
#include "../isa/region_begin.h"
#include "../isa/vec_avx512.h"
#include "../isa/pairs_avx512_bf16.h"
#include "../kernels/all_pairs.h"
#include "../isa/region_end.h"
#endif
