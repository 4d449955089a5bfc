// The backward pass of a loss whose gradient was worked out with it, for a grad_output of 1.
#pragma once

#include <ATen/TensorOperators.h>
#include <torch/csrc/autograd/graph_task.h>

#include "eligibility.h"
#if defined(MLP_EXT_WITH_CUDA)
#include "cuda/scale_gradient.h"
#endif

namespace mlp_ext {

// True if `grad` is one number that may be looked at, or handed to a kernel.
inline bool is_plain_number(const at::Tensor& grad) {
  return grad.dim() == 0 && has_kernel_type(grad) && !grad.is_neg() &&
         !grad.unsafeGetTensorImpl()->key_set().has(c10::DispatchKey::Python);
}

// On CUDA, where looking at `grad` would wait for the device. The gradient is scaled in place: with
// the graph it would have been dropped.
inline at::Tensor scaled_on_device(const at::Tensor& unscaled, const at::Tensor& grad) {
#if defined(MLP_EXT_WITH_CUDA)
  if (!torch::autograd::get_current_graph_task_keep_graph() && is_plain_number(grad) &&
      grad.scalar_type() == unscaled.scalar_type() && grad.device() == unscaled.device() &&
      unscaled.is_non_overlapping_and_dense() && has_kernel_type(unscaled)) {
    scale_gradient(unscaled, grad);
    return unscaled;
  }
#endif
  return unscaled * grad;
}

// `grad` times the gradient. With retain_graph the caller may do as he likes with his gradient and
// come back for another.
inline at::Tensor scaled_gradient(const at::Tensor& unscaled, const at::Tensor& grad) {
  if (is_cuda_kernel_device(unscaled.device())) return scaled_on_device(unscaled, grad);
  // The usual `loss.backward()` needs no scaling.
  if (!is_plain_number(grad) || grad.item<double>() != 1.0) return unscaled * grad;
  return torch::autograd::get_current_graph_task_keep_graph() ? unscaled.clone() : unscaled;
}

}  // namespace mlp_ext
