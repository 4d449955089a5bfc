// cuBLASLt as torch has loaded it: the functions that lt_plan.cpp calls, by their names, so that
// this extension neither links to the library nor brings another copy of it.
#pragma once

#if defined(MLP_EXT_ON_HOST)
#include "cublaslt_host.h"
#else
#include <cublasLt.h>
#endif

namespace mlp_ext::cuda {

#define MLP_FOR_EACH_LT_FUNCTION(X) \
  X(GetVersion)                     \
  X(MatmulDescCreate)               \
  X(MatmulDescDestroy)              \
  X(MatmulDescSetAttribute)         \
  X(MatrixLayoutCreate)             \
  X(MatrixLayoutDestroy)            \
  X(MatmulPreferenceCreate)         \
  X(MatmulPreferenceDestroy)        \
  X(MatmulPreferenceSetAttribute)   \
  X(MatmulAlgoGetHeuristic)         \
  X(Matmul)

struct LtFunctions {
#define MLP_MEMBER(name) decltype(&cublasLt##name) name;
  MLP_FOR_EACH_LT_FUNCTION(MLP_MEMBER)
#undef MLP_MEMBER
};

// Null where the process has no such library, of the major version that this was compiled for.
const LtFunctions* lt_functions();

// What a call needs: neither is null where there is a library to call.
struct Library {
  const LtFunctions* functions = nullptr;
  cublasLtHandle_t handle = nullptr;
};

}  // namespace mlp_ext::cuda
