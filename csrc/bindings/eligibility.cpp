#include "eligibility.h"

#include <ATen/TensorUtils.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/Exception.h>

#include <algorithm>

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

}  // namespace mlp_ext
