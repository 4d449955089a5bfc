// What the ops do under CPU autocast. (On CUDA, where there are no kernels, they fall apart into
// PyTorch's operators, each of which follows the autocast lists itself.)
#include <ATen/autocast_mode.h>

#include "implementations.h"
#include "ops.h"

namespace mlp_ext {

using at::Tensor;

namespace {

Tensor cast(const Tensor& t, at::ScalarType dtype) {
  return at::autocast::cached_cast(dtype, t, at::kCPU);
}

}  // namespace

// Like F.linear: every floating-point argument in the autocast dtype.
Tensor mlp_autocast_cpu(const Tensor& input, at::TensorList weights, const OptionalTensors& biases,
                        at::IntArrayRef activations) {
  const c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::AutocastCPU);
  const auto dtype = at::autocast::get_autocast_dtype(at::kCPU);
  std::vector<Tensor> cast_weights;
  OptionalTensors cast_biases;
  for (size_t l = 0; l < weights.size(); ++l) {
    cast_weights.push_back(cast(weights[l], dtype));
    const std::optional<Tensor> bias = biases.get(l);
    cast_biases.push_back(bias ? std::optional<Tensor>(cast(*bias, dtype)) : std::nullopt);
  }
  return ops::mlp(cast(input, dtype), cast_weights, cast_biases, activations);
}

// Like F.cross_entropy: in float32.
Tensor cross_entropy_autocast_cpu(const Tensor& input, const Tensor& target,
                                  const std::optional<Tensor>& weight, int64_t reduction,
                                  int64_t ignore_index, double label_smoothing) {
  const c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::AutocastCPU);
  return ops::cross_entropy(
      cast(input, at::kFloat), target,
      weight ? std::optional<Tensor>(cast(*weight, at::kFloat)) : std::nullopt, reduction,
      ignore_index, label_smoothing);
}

}  // namespace mlp_ext
