#include "lt_api.h"

#if !defined(MLP_EXT_ON_HOST)
#include <dlfcn.h>

#include <cstdio>
#include <optional>
#endif

namespace mlp_ext::cuda {

#if defined(MLP_EXT_ON_HOST)

const LtFunctions* lt_functions() {
#define MLP_ADDRESS(name) &cublasLt##name,
  static constexpr LtFunctions kFunctions{MLP_FOR_EACH_LT_FUNCTION(MLP_ADDRESS)};
#undef MLP_ADDRESS
  return &kFunctions;
}

#else

namespace {

std::optional<LtFunctions> find_functions() {
  char name[32];
  std::snprintf(name, sizeof name, "libcublasLt.so.%d", CUBLAS_VER_MAJOR);
  // The soname resolves to the copy that is loaded already. Never closed: its functions are kept.
  void* const library = dlopen(name, RTLD_LAZY | RTLD_LOCAL | RTLD_NOLOAD);
  if (!library) return std::nullopt;
  LtFunctions found;
#define MLP_FIND(name)                                                                   \
  found.name = reinterpret_cast<decltype(found.name)>(dlsym(library, "cublasLt" #name)); \
  if (!found.name) return std::nullopt;
  MLP_FOR_EACH_LT_FUNCTION(MLP_FIND)
#undef MLP_FIND
  return found;
}

}  // namespace

const LtFunctions* lt_functions() {
  static const std::optional<LtFunctions> functions = find_functions();
  return functions ? &*functions : nullptr;
}

#endif

}  // namespace mlp_ext::cuda
