// The backward pass of a loss whose gradient was worked out with it, for a grad_output of 1.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/saved_variable.h>

#include "eligibility.h"
#include "stack_tensors.h"
#if defined(MLP_EXT_WITH_CUDA)
#include "cuda/scale_gradient.h"
#endif

namespace mlp_ext {

// True if `grad` is one number that may be looked at, or handed to a kernel.
inline bool is_plain_number(const at::Tensor& grad) {
  return grad.dim() == 0 && has_kernel_type(grad) && !grad.is_neg() &&
         !grad.unsafeGetTensorImpl()->key_set().has(c10::DispatchKey::Python);
}

// `grad` times the gradient, in `type`. Where that is 16 bits wide the gradient is float32, and so
// is the product: under a loss scale, small gradients would be lost by rounding first.
inline at::Tensor rounded_product(const at::Tensor& unscaled, const at::Tensor& grad,
                                  at::ScalarType type) {
  return (unscaled * grad).to(type);
}

// True if nobody reads the gradient after this pass: it goes with the graph, and is not what a
// user's hook gave for it.
inline bool is_last_use(const torch::autograd::SavedVariable& saved) {
  return !torch::autograd::get_current_graph_task_keep_graph() && !saved.has_hooks();
}

// On CUDA, where looking at `grad` would wait for the device. On the last use the gradient is
// scaled in place.
inline at::Tensor scaled_on_device(const at::Tensor& unscaled, const at::Tensor& grad,
                                   at::ScalarType type, [[maybe_unused]] bool is_last) {
#if defined(MLP_EXT_WITH_CUDA)
  if (is_last && is_plain_number(grad) && unscaled.scalar_type() == type &&
      grad.scalar_type() == type && grad.device() == unscaled.device() &&
      unscaled.is_non_overlapping_and_dense() && has_kernel_type(unscaled)) {
    scale_gradient(unscaled, grad);
    return unscaled;
  }
  if (unscaled.scalar_type() != type && is_plain_number(grad) && has_kernel_type(unscaled)) {
    // In one launch: the operator rounds as it writes.
    at::Tensor rounded = at::empty_like(unscaled, unscaled.options().dtype(type));
    return at::mul_out(rounded, unscaled, grad);
  }
#endif
  return rounded_product(unscaled, grad, type);
}

// `grad` times the gradient, in `type`. If it is not the last use, the caller may do as he likes
// with his gradient and come back for another.
inline at::Tensor scaled_gradient(const torch::autograd::SavedVariable& saved,
                                  const at::Tensor& grad, at::ScalarType type) {
  const at::Tensor unscaled = saved.unpack();
  const bool is_last = is_last_use(saved);
  if (is_cuda_kernel_device(unscaled.device())) {
    return scaled_on_device(unscaled, grad, type, is_last);
  }
  // The usual `loss.backward()` needs no scaling.
  if (!is_plain_number(grad) || readable(grad).item<double>() != 1.0) {
    return rounded_product(unscaled, grad, type);
  }
  if (unscaled.scalar_type() != type) return unscaled.to(type);
  return is_last ? unscaled : unscaled.clone();
}

}  // namespace mlp_ext
