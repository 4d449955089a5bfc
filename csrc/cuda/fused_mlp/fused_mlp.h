// A whole stack of narrow Linear layers and activations in one launch, forward and backward: every
// width, the input's and the output's too, at most kFusedWidth. Sizes need not be multiples of
// anything, pointers need no alignment; even leading dimensions and 16-byte alignment are faster.
//
// T: float, BFloat16, Float16; 16-bit types are summed in float32 and rounded where PyTorch's
// separate operations round: z, y, dZ and dX. `precision` concerns float alone. Compute capability
// 8.0 and up. Results are the same bits on each run on the same device; nothing has to be reset
// between launches. fused_mlp_forward_fits and fused_mlp_backward_fits of fused_mlp_plan.h say what
// can run; anything else is cudaErrorInvalidValue.
#pragma once

#include "../../common/activation_kind.h"
#include "../../common/half.h"
#include "../cuda_api.h"
#include "../device_info.h"
#include "fused_mlp_plan.h"
#include "../precision.h"

namespace mlp_ext::cuda {

// y = activation(x weight^T + bias), x being the output of the layer below.
template <class T>
struct FusedForwardLayer {
  int64_t in, out;
  const T* weight;  // (out, in)
  int64_t ld_weight;
  const T* bias;  // (out), dense; null: none
  Activation activation;
  T* y;  // (rows, out); null: not wanted
  int64_t ld_y;
  T* z;  // (rows, out): x weight^T + bias, before the activation; null: not wanted
  int64_t ld_z;
};

template <class T>
struct FusedForward {
  const T* x;  // (rows, layer[0].in)
  int64_t ld_x, rows;
  int layers;
  FusedForwardLayer<T> layer[kFusedLayers];  // from the input up
};

// Of the layers from the lowest that has a gradient to give to the top.
template <class T>
struct FusedBackwardLayer {
  int64_t in, out;
  const T* weight;  // (out, in); read unless this is the lowest layer and dx is null
  int64_t ld_weight;
  const T* x;  // (rows, in): the layer's input; read for dw
  int64_t ld_x;
  Activation activation;
  const T* saved;  // (rows, out): the layer's y, or its z where saves_input(activation)
  int64_t ld_saved;
  T* dw;  // (out, in), dense; null: not wanted
  T* db;  // (out), dense; null: not wanted
};

template <class T>
struct FusedBackward {
  const T* dy;  // (rows, out of the top layer)
  int64_t ld_dy, rows;
  T* dx;  // (rows, layer[0].in); null: not wanted
  int64_t ld_dx;
  int layers;
  FusedBackwardLayer<T> layer[kFusedLayers];  // from the lowest up
};

template <class T>
cudaError_t fused_mlp_forward(const FusedForward<T>& stack, Precision precision,
                              const DeviceInfo& device, cudaStream_t stream);

// Bytes, aligned to 16; `rows`, `layers` and the widths decide, the pointers do not. Any contents.
template <class T>
size_t fused_mlp_backward_workspace(const FusedBackward<T>& stack, const DeviceInfo& device);

// Two launches: the gradients of blocks of rows, and the sum of dw and db over the blocks, which is
// left out where neither is wanted. With no rows it writes zeros to dw and db.
template <class T>
cudaError_t fused_mlp_backward(const FusedBackward<T>& stack, Precision precision,
                               const DeviceInfo& device, void* workspace, cudaStream_t stream);

}  // namespace mlp_ext::cuda
