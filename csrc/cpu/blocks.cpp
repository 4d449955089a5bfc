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
  // A's block is to stay in L2 while a panel of B and tiles of C pass through it: an eighth of it
  // (1024^3, AVX-512 on Sapphire Rapids with 2 MiB: 156 GFLOP/s in 168 rows, 149 in 336, 142 in
  // 672; 84 and 168 rows alike on Zen 4 with 1 MiB). B's block may come from memory, as A's rows
  // share it.
  constexpr int64_t kBytesOfB = 3 * 1024 * 1024;
  const auto tiles = [&](int64_t memory, int64_t tile) {
    return std::max<int64_t>(4, memory / (kc * bytes) / tile) * tile;
  };
  return {kc, tiles(caches.l2 / 8, row_tile), tiles(kBytesOfB, column_tile), caches.l1 / bytes};
}

}  // namespace mlp_ext::cpu
