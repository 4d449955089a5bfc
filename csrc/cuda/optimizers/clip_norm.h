// torch.nn.utils.clip_grad_norm_ with the 2-norm: a list of tensors of one type on one device is
// scaled together to a norm of at most max_norm. The norm stays on the device.
//
// Two launches a list: sum_of_squares writes a partial sum a block, scale_to_norm has every block
// add up all of them, in the same order, and scale its chunk. Nothing is counted, so nothing is to
// be reset between replays of a CUDA graph.
#pragma once

#include "../device_info.h"
#include "multi_tensor.h"

namespace mlp_ext::cuda {

struct FlatTensor {
  void* values;
  int64_t n;
};

// Bytes, aligned to 8.
size_t clip_norm_workspace(const FlatTensor* tensors, int64_t count, const DeviceInfo& device);

// T: float or double. norm: receives the norm before; some tensor has elements.
template <class T>
cudaError_t clip_norm(const FlatTensor* tensors, int64_t count, double max_norm, T* norm,
                      void* workspace, const DeviceInfo& device, cudaStream_t stream);

}  // namespace mlp_ext::cuda
