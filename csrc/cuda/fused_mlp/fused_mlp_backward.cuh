// The backward pass of a stack of narrow layers: see fused_mlp.h, fused_mlp_plan.h.
//
//   dy f'(saved) = dZ of the top layer -> [dZ to shared memory -> dW, db of the block's rows
//                                          dZ W -> f'(saved) -> dZ of the layer below] x layers
//
// dX goes from layer to layer in the registers of the warp that owns the rows, as the activations
// of the forward pass do; only dW, which sums over the rows of all warps, needs dZ and X in shared
// memory. Two barriers a layer: after the first dZ and X are there, and W comes while dW is
// computed; after the second W is there, and the X of the layer below comes while dX is computed.
//
// Why dW is in this launch. Left to a GEMM of its own, each layer's dZ costs a write and a read of
// (rows, width), and X is read a second time. Here a block reads and writes a partial of width x
// width for every 128 rows (each group of warps its own: 1, 1, 2, 8 of them at width 128, 64, 32,
// 16). That is at most the traffic of dZ, and goes to the second-level cache, which holds it.
//
// Registers at width 128, Full: dW has 64 sums, 32 of the left operands' parts, 8 + 4 for each
// right operand and fresh sums under way; dX 64 sums and 64 for what f' reads, which is loaded
// early.
#pragma once

#include "fused_mlp.h"
#include "fused_mlp_activation.cuh"
#include "fused_mlp_gradient.cuh"

MLP_NAMESPACE_BEGIN

// Where a layer's partial of dW and db begins, in elements.
template <class T>
MLP_FN int64_t partial_begin(const FusedBackward<T>& stack, int layer) {
  int64_t begin = 0;
  for (int l = 0; l < layer; ++l) {
    begin +=
        partial_elements(static_cast<int>(stack.layer[l].out), static_cast<int>(stack.layer[l].in));
  }
  return begin;
}

template <class S, int W>
__global__ void __launch_bounds__(32 * kFusedBackwardWarps,
                                  fused_backward_warps<typename S::Type>(W) / kFusedBackwardWarps)
    backward_stack(const __grid_constant__ FusedBackward<typename S::Type> stack,
                   float* const partials, const int groups) {
  using T = typename S::Type;
  constexpr int kTiles = W / 8, kStride = fused_tile_stride(W);
  const int rows_of_block = blockDim.x / 2, warp = threadIdx.x / 32;
  T* const weights = shared_memory<T>();
  T* const dz_tile = weights + W * fused_weight_stride<T>(W);
  T* const x_tile = dz_tile + rows_of_block * kStride;
  T* const own_dz = dz_tile + 16 * warp * kStride;
  T* const own_x = x_tile + 16 * warp * kStride;
  const int64_t partial_stride = partial_begin(stack, stack.layers);

  for (int64_t first = int64_t{blockIdx.x} * rows_of_block; first < stack.rows;
       first += int64_t{gridDim.x} * rows_of_block) {
    const int64_t row = first + 16 * warp, valid = stack.rows - row;
    const bool first_rows = first == int64_t{blockIdx.x} * rows_of_block;
    const auto fill_x = [&](int l) {
      const auto& layer = stack.layer[l];
      if (layer.dw == nullptr) return;
      const int64_t left = stack.rows - first;
      fill_rows(x_tile, kStride, layer.x + first * layer.ld_x, layer.ld_x,
                static_cast<int>(left < rows_of_block ? left : rows_of_block),
                static_cast<int>(layer.in), rows_of_block,
                rounded_up<16>(static_cast<int>(layer.in)));
      cp_async_commit();
    };
    // What the derivative of layer l reads. The input of the layer above, if it is that, is in
    // shared memory.
    float dz[kTiles][4], saved[kTiles][4];
    const auto load_saved = [&](int l) {
      const auto& layer = stack.layer[l];
      if (layer.activation == Activation::none) return;
      const bool here = l + 1 < stack.layers && stack.layer[l + 1].dw != nullptr &&
                        stack.layer[l + 1].x == layer.saved &&
                        stack.layer[l + 1].ld_x == layer.ld_saved;
      const T* const rows = here ? own_x : layer.saved + row * layer.ld_saved;
      load_rows(saved, rows, here ? kStride : layer.ld_saved, valid, static_cast<int>(layer.out));
    };

    fill_x(stack.layers - 1);
    load_rows(dz, stack.dy + row * stack.ld_dy, stack.ld_dy, valid,
              static_cast<int>(stack.layer[stack.layers - 1].out));
    load_saved(stack.layers - 1);
#pragma unroll 1
    for (int l = stack.layers - 1; l >= 0; --l) {
      const auto& layer = stack.layer[l];
      const int in = static_cast<int>(layer.in), out = static_cast<int>(layer.out);
      const bool passes_down = l > 0 || stack.dx != nullptr;
      derive(dz, saved, layer.activation);
      clear_beyond(dz, out);
      store_rows(own_dz, kStride, 16, W, dz);
      cp_async_wait<0>();
      __syncthreads();  // dZ and X are there; all have left the weights
      if (passes_down) {
        fill_weights<W, true>(weights, layer.weight, layer.ld_weight, out, in);
        cp_async_commit();
      }
      if (layer.dw != nullptr || layer.db != nullptr) {
        add_gradient<S, W>(
            dz_tile, x_tile, out, in,
            partials + int64_t{blockIdx.x} * groups * partial_stride + partial_begin(stack, l),
            partial_stride, first_rows, layer.dw != nullptr, layer.db != nullptr);
      }
      if (l > 0) load_saved(l - 1);
      cp_async_wait<0>();
      __syncthreads();  // the weights are there; all have left dZ and X
      if (l > 0) fill_x(l - 1);
      if (!passes_down) break;
      product<S, W, true>(dz, FromTile<T, W>{own_dz}, weights, out, in);
      round_to<T>(dz);
      if (l == 0) store_rows(stack.dx + row * stack.ld_dx, stack.ld_dx, valid, in, dz);
    }
  }
}

MLP_NAMESPACE_END
