// What decides the launches of the fused MLP: the width that it is padded to, shared memory, warps,
// blocks. Plain arithmetic, so that a host can ask what fits.
//
// A warp owns 16 rows. A block's warps share the weights in shared memory. Forward keeps all layers
// there where they fit and streams them through two slots, or one, where they do not. Backward
// streams always, through one slot that is filled while dW is computed, beside a tile of dZ and a
// tile of the layer's input, both as high as the block has rows.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../../common/function.h"
#include "../device_info.h"

namespace mlp_ext::cuda {

constexpr int kFusedLayers = 16;  // at most; what a kernel's parameters hold
constexpr int kFusedWidth = 128;  // at most, of every layer's input and output

// 16, 32, 64 or 128: the narrowest that holds every width, 0 where none does. widths: layers + 1
// numbers, the input's first.
inline int fused_padded_width(const int64_t* widths, int layers) {
  int64_t widest = 1;
  for (int i = 0; i <= layers; ++i) {
    if (widths[i] < 1) return 0;
    widest = std::max(widest, widths[i]);
  }
  for (int padded = 16; padded <= kFusedWidth; padded *= 2) {
    if (widest <= padded) return padded;
  }
  return 0;
}

// Elements from one row of the weights to the next in shared memory. float32 is read by 16 bytes a
// lane, 8 lanes at a time from two rows: they lie 16 banks apart. 16-bit is read by ldmatrix, 8
// rows of 16 bytes at a time.
template <class T>
MLP_FN constexpr int fused_weight_stride(int width) {
  return sizeof(T) == 4 ? (width == 16 ? 16 : width + 16) : width + 8;
}
// The same for tiles of dZ and X. float32 is read by 4 bytes a lane, 8 columns of 4 rows: they lie
// 8 or 24 banks apart.
MLP_FN constexpr int fused_tile_stride(int width) { return width + 8; }

struct FusedPlan {
  int width = 0;  // 0: does not fit, and all else is 0
  int warps = 0;  // of a block
  int slots = 0;  // weights that shared memory holds at a time
  int64_t blocks = 0;
  size_t shared = 0;
  // Backward: groups of warps that sum dW of different rows of a block, and all partial sums.
  int groups = 0;
  int64_t partials() const { return blocks * groups; }
};

// Warps whose registers a multiprocessor has: forward in one block, with 128, 168 or 255 a thread;
// backward in blocks of at most 8, with 128 or 255.
MLP_FN constexpr int fused_forward_warps(int width) {
  return width == 128 ? 8 : width == 64 ? 12 : 16;
}
template <class T>
MLP_FN constexpr int fused_backward_warps(int width) {
  return width <= (sizeof(T) == 4 ? 16 : 32) ? 16 : 8;
}
constexpr int kFusedBackwardWarps = 8;

// As many rows a block as leave no multiprocessor without one, but four warps or more, since a
// block reads all weights.
inline int fused_warps(int most, int64_t rows, const DeviceInfo& device) {
  int warps = most;
  while (warps >= 8 && (rows + 16 * warps - 1) / (16 * warps) < device.multiprocessors) warps /= 2;
  return warps;
}

// Blocks stay for as many groups of rows as it takes.
inline int64_t fused_blocks(int64_t rows, int most_warps, const FusedPlan& plan,
                            const DeviceInfo& device) {
  const int64_t rows_of_block = 16 * plan.warps;
  const int64_t by_shared = (device.most_shared + 1024) / (plan.shared + 1024);
  const int64_t of_multiprocessor = std::min<int64_t>(by_shared, most_warps / plan.warps);
  return std::min((rows + rows_of_block - 1) / rows_of_block,
                  device.multiprocessors * std::max<int64_t>(1, of_multiprocessor));
}

template <class T>
FusedPlan fused_forward_plan(const int64_t* widths, int layers, int64_t rows,
                             const DeviceInfo& device) {
  FusedPlan plan;
  const int width = fused_padded_width(widths, layers);
  if (width == 0 || layers < 1 || layers > kFusedLayers || device.arch < 80) return plan;
  const size_t biases = sizeof(float) * width * layers;
  const size_t slot = sizeof(T) * width * fused_weight_stride<T>(width);
  if (biases + slot > device.most_shared) return plan;
  const size_t fitting = (device.most_shared - biases) / slot;
  plan.slots = fitting >= size_t(layers) ? layers : fitting >= 2 ? 2 : 1;
  plan.shared = biases + plan.slots * slot;
  plan.groups = 1;
  plan.warps = fused_warps(fused_forward_warps(width), rows, device);
  plan.blocks = fused_blocks(rows, fused_forward_warps(width), plan, device);
  plan.width = width;
  return plan;
}

// A warp's tile of dW, (rows, columns).
MLP_FN constexpr int fused_dw_rows(int width) { return width < 64 ? 16 : 32; }
MLP_FN constexpr int fused_dw_columns(int width) { return width < 128 ? 16 : 32; }
MLP_FN constexpr int fused_dw_tiles(int width) {
  return width / fused_dw_rows(width) * (width / fused_dw_columns(width));
}

template <class T>
FusedPlan fused_backward_plan(const int64_t* widths, int layers, int64_t rows,
                              const DeviceInfo& device) {
  FusedPlan plan;
  const int width = fused_padded_width(widths, layers);
  if (width == 0 || layers < 1 || layers > kFusedLayers || device.arch < 80) return plan;
  const size_t slot = sizeof(T) * width * fused_weight_stride<T>(width);
  const size_t tiles_of_warp = 2 * sizeof(T) * 16 * fused_tile_stride(width);
  int most = kFusedBackwardWarps;
  while (most > 2 && slot + most * tiles_of_warp > device.most_shared) most /= 2;
  if (slot + most * tiles_of_warp > device.most_shared) return plan;
  plan.slots = 1;
  plan.warps = fused_warps(most, rows, device);
  plan.groups = std::max(1, plan.warps / fused_dw_tiles(width));
  plan.shared = slot + plan.warps * tiles_of_warp;
  plan.blocks = fused_blocks(rows, fused_backward_warps<T>(width), plan, device);
  plan.width = width;
  return plan;
}

// Whether a stack can run: its widths, layers + 1 numbers from the input's on.
template <class T>
bool fused_mlp_forward_fits(const int64_t* widths, int layers, const DeviceInfo& device) {
  return fused_forward_plan<T>(widths, layers, 1, device).width != 0;
}
template <class T>
bool fused_mlp_backward_fits(const int64_t* widths, int layers, const DeviceInfo& device) {
  return fused_backward_plan<T>(widths, layers, 1, device).width != 0;
}

}  // namespace mlp_ext::cuda
