// The products of scalar.cpp.
#define MLP_ISA scalar
#include "../isa/region_begin.h"
#include "../isa/vec_scalar.h"
#include "../kernels/all_gemm.h"
#include "../isa/region_end.h"
