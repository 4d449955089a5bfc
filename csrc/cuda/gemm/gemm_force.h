// Who multiplies, and by which plan: heuristics.h's and lt_heuristics.h's choice, or what tests and
// measurements force.
//   tile,split as 128x128,4   our kernel, with this plan for every product
//   library                   cuBLASLt (../cublaslt) for every product that it has
//   own                       never cuBLASLt; the plans are heuristics.h's
// The environment variable MLP_EXT_FORCE has it when mlp_ext is imported. It is not looked at
// later: a product has no GIL, and getenv beside os.environ's setenv in another thread is
// undefined.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

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

enum class Forced : uint8_t { nothing, plan, library, own };

// One word, so that a product reads who and by which plan together.
struct ForcedProducts {
  Forced who = Forced::nothing;
  uint8_t tile = 0;
  uint16_t split = 1;
};
inline std::atomic<ForcedProducts> forced_products{};
static_assert(std::atomic<ForcedProducts>::is_always_lock_free);

inline std::string forced_text() {
  const ForcedProducts forced = forced_products.load(std::memory_order_relaxed);
  switch (forced.who) {
    case Forced::nothing:
      return "";
    case Forced::library:
      return "library";
    case Forced::own:
      return "own";
    default:
      return std::string(kGemmTiles[forced.tile].name) + "," + std::to_string(forced.split);
  }
}

// "" forces nothing. Returns what was forced before. std::invalid_argument, and nothing is changed,
// where `text` is none of the above. Not while another thread multiplies: the workspace and the
// product ask one after the other.
inline std::string force_products(const std::string& text) {
  ForcedProducts forced;
  GemmPlan plan{};
  if (text == "library") {
    forced.who = Forced::library;
  } else if (text == "own") {
    forced.who = Forced::own;
  } else if (parse_plan(text.c_str(), plan)) {
    forced = {Forced::plan, uint8_t(plan.tile), uint16_t(plan.split)};
  } else if (!text.empty()) {
    throw std::invalid_argument("'" + text + "' is no plan for a product: expected tile,split as " +
                                "128x128,4, or library, or own");
  }
  std::string before = forced_text();
  forced_products.store(forced, std::memory_order_relaxed);
  return before;
}

inline void force_products_of_environment() {
  const char* const text = std::getenv("MLP_EXT_FORCE");
  if (!text) return;
  try {
    force_products(text);
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(std::string("MLP_EXT_FORCE: ") + error.what());
  }
}

inline bool is_forced(Forced who) {
  return forced_products.load(std::memory_order_relaxed).who == who;
}

inline GemmPlan choose_plan(const DeviceInfo& device, GemmKind kind, int64_t M, int64_t N,
                            int64_t K) {
  const ForcedProducts forced = forced_products.load(std::memory_order_relaxed);
  if (forced.who == Forced::plan) return {forced.tile, forced.split};
  return gemm_plan(device, kind, M, N, K);
}

}  // namespace mlp_ext::cuda
