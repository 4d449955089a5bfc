// Block sizes of the products, from the caches of the host.
#pragma once

#include "kernel_table.h"

namespace mlp_ext::cpu {

// Bytes, of one core.
struct Caches {
  int64_t l1, l2;
};

// What the system says; a Zen 3's where it says nothing.
Caches caches_of_host();

// For tiles of `row_tile` rows and `column_tile` columns of elements of `bytes` bytes, `kc` deep.
Blocks blocks_for(const Caches& caches, int64_t kc, int64_t row_tile, int64_t column_tile,
                  int64_t bytes);

}  // namespace mlp_ext::cpu
