// What stands before every function of csrc/common, so that CUDA kernels may call it.
#pragma once

#if defined(__CUDACC__)
#define MLP_FN __host__ __device__
#else
#define MLP_FN
#endif
