// The plan of a product: heuristics.h's, or what MLP_EXT_FORCE=tile,split says.
// MLP_EXT_FORCE=library is for cuBLASLt (../cublaslt), MLP_EXT_FORCE=own against it: tile and split
// are planned as ever.
#pragma once

#include <cstdlib>
#include <cstring>

#include "../cuda_api.h"
#include "heuristics.h"

namespace mlp_ext::cuda {

// False where `text` is not "tile,split" with a tile of kGemmTiles and a split of 1 to 65535.
inline bool parse_plan(const char* text, GemmPlan& plan) {
  const char* const comma = std::strchr(text, ',');
  if (!comma) return false;
  for (int i = 0; i < kGemmTileCount; ++i) {
    const size_t length = std::strlen(kGemmTiles[i].name);
    if (length != size_t(comma - text) || std::strncmp(text, kGemmTiles[i].name, length) != 0) {
      continue;
    }
    char* end = nullptr;
    const long split = std::strtol(comma + 1, &end, 10);
    if (end == comma + 1 || *end != '\0' || split < 1 || split > 65535) return false;
    plan = {i, int(split)};
    return true;
  }
  return false;
}

inline const char* forced() {
  const char* const text = std::getenv("MLP_EXT_FORCE");
  return text ? text : "";
}
inline bool library_is_forced() { return std::strcmp(forced(), "library") == 0; }
inline bool library_is_excluded() { return std::strcmp(forced(), "own") == 0; }
inline bool plan_is_forced() { return *forced() && !library_is_forced() && !library_is_excluded(); }

inline cudaError_t choose_plan(const DeviceInfo& device, GemmKind kind, int64_t M, int64_t N,
                               int64_t K, GemmPlan& plan) {
  if (plan_is_forced()) return parse_plan(forced(), plan) ? cudaSuccess : cudaErrorInvalidValue;
  plan = gemm_plan(device, kind, M, N, K);
  return cudaSuccess;
}

}  // namespace mlp_ext::cuda
