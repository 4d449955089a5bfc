#include "blocks.h"

#include <unistd.h>

#include <algorithm>

namespace mlp_ext::cpu {

Caches caches_of_host() {
  Caches caches{32 * 1024, 512 * 1024};
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  const long l1 = sysconf(_SC_LEVEL1_DCACHE_SIZE), l2 = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (l1 > 0) caches.l1 = l1;
  if (l2 > 0) caches.l2 = l2;
#endif
  return caches;
}

Blocks blocks_for(const Caches& caches, int64_t kc, int64_t row_tile, int64_t column_tile,
                  int64_t bytes) {
  constexpr int64_t kBytesOfB = 2 * 1024 * 1024;
  const auto tiles = [&](int64_t memory, int64_t tile) {
    return std::max<int64_t>(4, memory / (kc * bytes) / tile) * tile;
  };
  return {kc, tiles(caches.l2 / 4, row_tile), tiles(kBytesOfB, column_tile), caches.l1 / bytes};
}

}  // namespace mlp_ext::cpu
