// The backward pass of a loss whose gradient was worked out with it, for a grad_output of 1.
#pragma once

#include <ATen/TensorOperators.h>
#include <torch/csrc/autograd/graph_task.h>

#include "eligibility.h"

namespace mlp_ext {

// True if the gradient needs no scaling: the usual `loss.backward()`.
inline bool is_one(const at::Tensor& grad) {
  if (grad.dim() != 0 || !has_kernel_type(grad) ||
      grad.unsafeGetTensorImpl()->key_set().has(c10::DispatchKey::Python)) {
    return false;
  }
  return grad.item<double>() == 1.0;
}

// `grad` times the gradient. With retain_graph the caller may do as he likes with his gradient and
// come back for another.
inline at::Tensor scaled_gradient(const at::Tensor& unscaled, const at::Tensor& grad) {
  if (!is_one(grad)) return unscaled * grad;
  return torch::autograd::get_current_graph_task_keep_graph() ? unscaled.clone() : unscaled;
}

}  // namespace mlp_ext
