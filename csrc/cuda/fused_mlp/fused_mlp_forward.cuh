// The forward pass of a stack of narrow layers: see fused_mlp.h, fused_mlp_plan.h.
//
//   a warp's 16 rows of x -> accumulators -> (times W_l in shared memory, + b, f) x layers
//                                                  |-> z, y where they are wanted
//
// Activations stay in registers from layer to layer. Registers at width 128, Full: 64 for a layer's
// input, 64 for its sums, 16 for the left operand's parts, 8 + 4 for each pair of right operand and
// fresh sums under way: 219 of 255 on sm_80, so a block has 8 warps.
#pragma once

#include "fused_mlp.h"
#include "fused_mlp_activation.cuh"
#include "fused_mlp_product.cuh"

MLP_NAMESPACE_BEGIN

template <class S, int W>
__global__ void __launch_bounds__(32 * fused_forward_warps(W), 1)
    forward_stack(const __grid_constant__ FusedForward<typename S::Type> stack, int slots) {
  using T = typename S::Type;
  constexpr int kTiles = W / 8, kSlot = W * fused_weight_stride<T>(W);
  T* const weights = shared_memory<T>();
  float* const biases = reinterpret_cast<float*>(weights + slots * kSlot);
  const bool resident = slots == stack.layers;

  for (int i = threadIdx.x; i < stack.layers * W; i += blockDim.x) {
    const auto& layer = stack.layer[i / W];
    biases[i] = layer.bias != nullptr && i % W < layer.out ? to_compute(layer.bias[i % W]) : 0;
  }
  for (int l = 0; l < (resident ? slots : 1); ++l) {
    const auto& layer = stack.layer[l];
    fill_weights<W, false>(weights + l * kSlot, layer.weight, layer.ld_weight,
                           static_cast<int>(layer.out), static_cast<int>(layer.in));
  }
  cp_async_commit();
  if (resident) {
    cp_async_wait<0>();
    __syncthreads();
  }

  const int64_t rows_of_block = blockDim.x / 2;
  const int q = this_lane().q;
  int slot = 0;
  for (int64_t first = blockIdx.x * rows_of_block; first < stack.rows;
       first += gridDim.x * rows_of_block) {
    const int64_t row = first + threadIdx.x / 32 * 16, valid = stack.rows - row;
    const bool last_rows = first + gridDim.x * rows_of_block >= stack.rows;
    float x[kTiles][4];
    load_rows(x, stack.x + row * stack.ld_x, stack.ld_x, valid,
              static_cast<int>(stack.layer[0].in));
#pragma unroll 1
    for (int l = 0; l < stack.layers; ++l) {
      const auto& layer = stack.layer[l];
      const int in = static_cast<int>(layer.in), out = static_cast<int>(layer.out);
      const bool more = l + 1 < stack.layers || !last_rows;
      const auto fill_next = [&] {
        const auto& next = stack.layer[l + 1 < stack.layers ? l + 1 : 0];
        fill_weights<W, false>(weights + (slot ^ (slots - 1)) * kSlot, next.weight, next.ld_weight,
                               static_cast<int>(next.out), static_cast<int>(next.in));
        cp_async_commit();
      };
      if (!resident) {
        cp_async_wait<0>();
        __syncthreads();  // the slot is full; all have left the one before it
        if (slots == 2 && more) fill_next();
      }
      float y[kTiles][4];
      product<S, W, false>(y, FromAccumulators<W>{x}, weights + (resident ? l : slot) * kSlot, in,
                           out);
      if (!resident) {
        if (slots == 1 && more) {
          __syncthreads();  // all have read the only slot
          fill_next();
        }
        slot ^= slots - 1;
      }
      MLP_UNROLL
      for (int n = 0; n < kTiles; ++n) {
        MLP_UNROLL
        for (int i = 0; i < 4; ++i) y[n][i] += biases[l * W + 8 * n + 2 * q + i % 2];
      }
      round_to<T>(y);
      if (layer.z != nullptr) {
        store_rows(layer.z + row * layer.ld_z, layer.ld_z, valid, out, y);
      }
      activate(y, layer.activation);
      if (layer.y != nullptr) {
        store_rows(layer.y + row * layer.ld_y, layer.ld_y, valid, out, y);
      }
      clear_beyond(y, out);
      MLP_UNROLL
      for (int n = 0; n < kTiles; ++n) {
        MLP_UNROLL
        for (int i = 0; i < 4; ++i) x[n][i] = y[n][i];
      }
    }
  }
}

MLP_NAMESPACE_END
