// The baseline table: plain C++ at one lane, on every CPU.
#define MLP_ISA scalar
#include "../isa/region_begin.h"
#include "../isa/vec_scalar.h"
#include "../kernels/all.h"
#include "../isa/region_end.h"
