// Which tile and how many parts of K a matrix product takes: a cost model in clock cycles of one
// multiprocessor, minimised over the tiles x powers of two (and what fills the device once).
//
// The rates are estimates, to be replaced by measurements: tensor cores by their data sheets, with
// mma.sync at 62 % of wgmma's rate on capability 9.0 (published measurements), L2 at 40 bytes a
// clock and multiprocessor, a quarter more for splitting float32 operands, 400 clocks for a step
// that nothing else limits (its barrier, its loads from shared memory, their latencies) and 200 for
// each product of its chains, 3000 for a second launch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../device_info.h"

namespace mlp_ext::cuda {

// A block's part of C. Its stages of operands lie in shared memory, 128 bytes of K each.
struct GemmTile {
  const char* name;
  int m, n, threads;
  int resident;  // blocks that a multiprocessor's registers hold
};

constexpr int kGemmStages = 3;
constexpr GemmTile kGemmTiles[] = {
    {"128x128", 128, 128, 256, 1},
    {"64x64", 64, 64, 128, 3},
    {"128x32", 128, 32, 128,
     3},  // few columns: the last layer, or the weight gradient of the first
    {"32x128", 32, 128, 128, 3},  // few rows: small batches, the weight gradient of the last layer
};
constexpr int kGemmTileCount = sizeof(kGemmTiles) / sizeof(kGemmTiles[0]);

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr size_t gemm_shared_bytes(const GemmTile& t) {
  return size_t(kGemmStages) * size_t(t.m + t.n) * 128;
}

// What is multiplied: elements of `bytes` bytes, by `products` tensor-core products each.
struct GemmKind {
  int bytes, products;
};

struct GemmPlan {
  int tile;   // of kGemmTiles
  int split;  // parts of K
};

// Floating-point operations a clock and multiprocessor of mma.sync on tf32; twice that on 16 bits.
constexpr double tensor_rate(int arch) { return arch == 80 ? 1024 : arch < 90 ? 512 : 1270; }

constexpr double gemm_cost(const DeviceInfo& device, GemmKind kind, int64_t M, int64_t N, int64_t K,
                           GemmPlan plan) {
  const GemmTile& t = kGemmTiles[plan.tile];
  const int64_t depth = 128 / kind.bytes;  // of K, a step
  const int64_t blocks = ceil_div(M, t.m) * ceil_div(N, t.n) * plan.split;
  int64_t side_by_side = int64_t(device.most_shared / gemm_shared_bytes(t));
  if (side_by_side > t.resident) side_by_side = t.resident;
  const int64_t waves = ceil_div(blocks, side_by_side * device.multiprocessors);
  if (side_by_side > ceil_div(blocks, device.multiprocessors)) {
    side_by_side = ceil_div(blocks, device.multiprocessors);
  }
  const double rate = tensor_rate(device.arch) * (kind.bytes == 2 ? 2 : 1);
  const double multiply =
      2.0 * t.m * t.n * double(depth) * kind.products / rate * (kind.products > 1 ? 1.25 : 1);
  const double load = (t.m + t.n) * 128 / 40.0;
  double step = double(side_by_side) * (multiply > load ? multiply : load);
  const double least = 400 + 200 * kind.products;
  if (step < least) step = least;
  const double steps = double(ceil_div(ceil_div(K, depth), plan.split));
  const double epilogue = 1500 + double(side_by_side) * t.m * t.n / 8.0;
  double cost = double(waves) * (steps * step + epilogue);
  if (plan.split > 1) {  // write the parts, read them in another kernel
    cost += 3000 + 2.0 * plan.split * double(M) * double(N) * 4 / 40 / device.multiprocessors;
  }
  return cost;
}

constexpr GemmPlan gemm_plan(const DeviceInfo& device, GemmKind kind, int64_t M, int64_t N,
                             int64_t K) {
  GemmPlan best{1, 1};
  double least = -1;
  for (int tile = 0; tile < kGemmTileCount; ++tile) {
    const GemmTile& t = kGemmTiles[tile];
    if (gemm_shared_bytes(t) > device.most_shared) continue;
    const int64_t steps = ceil_div(K, 128 / kind.bytes);
    const int64_t tiles = ceil_div(M, t.m) * ceil_div(N, t.n);
    const int64_t slots = int64_t(device.multiprocessors) * t.resident;
    // 1, 2, 4, ..., and last what fills the device once; each part has two steps at least.
    bool last = false;
    for (int64_t split = 1; !last; split *= 2) {
      if (split * tiles >= slots || split * 2 > steps) {
        last = true;
        const int64_t fill = slots / tiles < steps / 2 ? slots / tiles : steps / 2;
        if (split > 1) split = fill > 1 ? fill : 1;
      }
      const GemmPlan plan{tile, int(split)};
      const double cost = gemm_cost(device, kind, M, N, K, plan);
      if (least < 0 || cost < least) least = cost, best = plan;
    }
  }
  return best;
}

}  // namespace mlp_ext::cuda
