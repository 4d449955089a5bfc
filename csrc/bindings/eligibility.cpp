#include "eligibility.h"

#include <ATen/ExpandUtils.h>
#include <ATen/TensorUtils.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "../common/loss_kind.h"
#include "../cpu/dispatch.h"
#include "tensor_classes.h"

namespace mlp_ext {

using at::Tensor;

bool is_cuda_kernel_device([[maybe_unused]] const at::Device& device) {
#if defined(MLP_EXT_ON_HOST)
  return device.is_cpu();  // which stands for it: see cuda/device.h
#elif defined(MLP_EXT_WITH_CUDA)
  return device.is_cuda();
#else
  return false;
#endif
}

bool has_kernel_type(const Tensor& t) {
  if (!t.device().is_cpu() && !is_cuda_kernel_device(t.device())) return false;
  if (t.layout() != at::kStrided || t.is_nested()) return false;
  if (has_own_dispatch(t)) return false;
  switch (t.scalar_type()) {
    case at::kFloat:
    case at::kDouble:
    case at::kBFloat16:
    case at::kHalf:
      return true;
    default:
      return false;
  }
}

namespace {

// Where PyTorch's own operators are faster than our kernels (benchmarks: suite dtypes). 16-bit
// types that are converted to float32 and back: oneDNN multiplies them as they are; small stacks
// win all the same by being one call. float64 with an activation of exponentials: ours call the C
// library lane by lane.
constexpr int64_t kMost16BitMultiplyAdds = 1 << 20;
constexpr int64_t kMostFloat64Elements = 1 << 12;

// Without float16 arithmetic in the CPU PyTorch's products are 20 times slower than converting all
// to float32 (784-512-256-10 at batch 64 on Zen 4: 27 ms a training step against 1.3).
bool torch_is_fast_at(at::ScalarType dtype) {
  static const bool has_float16 = cpu::has_float16_arithmetic();
  return dtype != at::kHalf || has_float16;
}

bool has_exponentials(Activation activation) {
  return activation != Activation::none && activation != Activation::relu &&
         activation != Activation::leaky_relu;
}

bool is_better_left_to_torch(const Tensor& input, at::TensorList weights,
                             at::IntArrayRef activations) {
  const auto dtype = input.scalar_type();
  // On CUDA nothing is, until a GPU has been asked.
  if (is_cuda_kernel_device(input.device())) return false;
  if (dtype == at::kFloat) return false;
  // Sizes unknown at compile time: no guess.
  if (input.unsafeGetTensorImpl()->has_symbolic_sizes_strides()) return dtype != at::kDouble;
  if (stack_compute_type(cpu::kernels(), input, weights) == at::kBFloat16) return false;
  const int64_t rows = input.numel() / input.size(-1);
  int64_t multiply_adds = 0, elements = 0;
  for (size_t l = 0; l < weights.size(); ++l) {
    multiply_adds += rows * weights[l].numel();
    if (has_exponentials(static_cast<Activation>(activations[l]))) {
      elements += rows * weights[l].size(0);
    }
  }
  return dtype == at::kDouble ? elements > kMostFloat64Elements
                              : multiply_adds > kMost16BitMultiplyAdds && torch_is_fast_at(dtype);
}

}  // namespace

at::ScalarType stack_compute_type(const cpu::KernelTable& table, const Tensor& input,
                                  at::TensorList weights) {
  if (input.scalar_type() == at::kDouble) return at::kDouble;
  const cpu::ComputeKernels<BFloat16>* bf16 = table.bf16;
  if (input.scalar_type() != at::kBFloat16 || bf16 == nullptr) return at::kFloat;
  int64_t depth = std::max(input.numel() / input.size(-1), input.size(-1));
  for (const Tensor& weight : weights) depth = std::max(depth, weight.size(0));
  return depth <= bf16->most_depth ? at::kBFloat16 : at::kFloat;
}

bool stack_fits_kernels(const Tensor& input, at::TensorList weights, const OptionalTensors& biases,
                        at::IntArrayRef activations) {
  check_stack_lists(weights, biases, activations);
  if (!has_kernel_type(input) || input.dim() == 0 || input.sym_numel() == 0) return false;
  const auto dtype = input.scalar_type();
  c10::SymInt features = input.sym_size(-1);
  for (size_t l = 0; l < weights.size(); ++l) {
    const Tensor& weight = weights[l];
    if (!has_kernel_type(weight) || weight.device() != input.device() ||
        weight.scalar_type() != dtype || weight.dim() != 2 || weight.sym_size(1) != features ||
        weight.sym_size(0) == 0) {
      return false;
    }
    features = weight.sym_size(0);
    const std::optional<Tensor> bias = biases.get(l);
    if (bias &&
        (!has_kernel_type(*bias) || bias->device() != input.device() ||
         bias->scalar_type() != dtype || bias->dim() != 1 || bias->sym_size(0) != features)) {
      return false;
    }
  }
  return true;
}

bool stack_has_kernel(const Tensor& input, at::TensorList weights, const OptionalTensors& biases,
                      at::IntArrayRef activations) {
  return stack_fits_kernels(input, weights, biases, activations) &&
         !is_better_left_to_torch(input, weights, activations);
}

bool in_functorch() {
  return c10::impl::tls_local_dispatch_key_set().included_.has(
      c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

bool has_tangent(const Tensor& t) { return t.defined() && t._fw_grad(/*level=*/0).defined(); }

namespace {

// A tensor of the older vmap, which is_grads_batched and jacobian(vectorize=True) use.
bool is_batched(const Tensor& t) {
  return t.unsafeGetTensorImpl()->key_set().has(c10::DispatchKey::Batched);
}

}  // namespace

bool needs_composite_backward(const Tensor& grad) {
  return at::GradMode::is_enabled() || in_functorch() || is_batched(grad) || has_tangent(grad);
}

// ---- losses

namespace {

// Of the input's dtype, and where it is: PyTorch has its own error for tensors of two devices.
bool is_like(const Tensor& t, const Tensor& input) {
  return has_kernel_type(t) && t.scalar_type() == input.scalar_type() &&
         t.device() == input.device();
}

// A constant of the loss: no gradient is wanted of it.
bool is_constant(const Tensor& t, const Tensor& input) {
  return is_like(t, input) && !t.requires_grad();
}

// One index for each row: (N, d1, ...) to logits (N, C, d1, ...), () to (C,).
bool are_class_indices(const Tensor& target, const Tensor& input) {
  if (target.device() != input.device() || target.scalar_type() != at::kLong ||
      target.layout() != at::kStrided || target.dim() != input.dim() - 1) {
    return false;
  }
  for (int64_t d = 0; d < target.dim(); ++d) {
    if (target.sym_size(d) != input.sym_size(d == 0 ? 0 : d + 1)) return false;
  }
  return true;
}

// The kernels for images count classes in the logits' type.
constexpr int64_t kMostClassesOfImages = 1 << 24;

}  // namespace

bool cross_entropy_has_kernel(const Tensor& input, const Tensor& target,
                              const std::optional<Tensor>& weight, int64_t ignore_index,
                              double label_smoothing) {
  if (!has_kernel_type(input) || input.dim() == 0 || input.sym_numel() == 0) return false;
  const c10::SymInt classes = input.sym_size(input.dim() == 1 ? 0 : 1);
  if (input.dim() > 2 && classes > kMostClassesOfImages) return false;
  if (target.sym_sizes() == input.sym_sizes()) {
    if (!is_constant(target, input) || ignore_index >= 0) return false;
  } else if (!are_class_indices(target, input)) {
    return false;
  }
  if (weight &&
      (!is_constant(*weight, input) || weight->dim() != 1 || weight->sym_size(0) != classes)) {
    return false;
  }
  return label_smoothing >= 0 && label_smoothing <= 1;
}

bool elementwise_loss_has_kernel(const Tensor& input, const Tensor& target,
                                 const std::optional<Tensor>& weight,
                                 const std::optional<Tensor>& pos_weight, int64_t code,
                                 double parameter) {
  const LossKind kind = checked_loss(code);
  const bool is_bce = kind == LossKind::bce_with_logits;
  if (!has_kernel_type(input) || input.sym_numel() == 0 || !is_like(target, input) ||
      target.sym_sizes() != input.sym_sizes() || (is_bce && target.requires_grad())) {
    return false;
  }
  if ((kind == LossKind::huber || kind == LossKind::smooth_l1) && !(parameter > 0)) return false;
  if (weight) {
    const bool fits = is_bce ? at::is_expandable_to(weight->sym_sizes(), input.sym_sizes())
                             : weight->sym_sizes() == input.sym_sizes();
    if (!is_constant(*weight, input) || !fits || kind == LossKind::smooth_l1) {
      return false;
    }
  }
  if (pos_weight) {
    const bool fits = pos_weight->dim() <= input.dim() &&
                      (pos_weight->sym_numel() == 1 ||
                       (pos_weight->dim() == 1 && pos_weight->sym_size(0) == input.sym_size(-1)));
    if (!is_constant(*pos_weight, input) || !fits || !is_bce) return false;
  }
  return true;
}

}  // namespace mlp_ext
