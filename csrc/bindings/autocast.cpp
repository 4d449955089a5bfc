// What the ops do under autocast. (CUDA without kernels of ours does not come here: there the ops
// fall apart into PyTorch's operators, each of which follows the autocast lists itself.)
#include <ATen/autocast_mode.h>

#include "../common/loss_kind.h"
#include "implementations.h"
#include "ops.h"
#include "python.h"

namespace mlp_ext {

using at::Tensor;

namespace {

// Autocast of one device.
struct Autocast {
  c10::DeviceType device;
  c10::DispatchKey key;

  Tensor cast(const Tensor& t, at::ScalarType dtype) const {
    return at::autocast::cached_cast(dtype, t, device);
  }

  // Like F.linear: every floating-point argument in the autocast dtype.
  Tensor mlp(const Tensor& input, at::TensorList weights, const OptionalTensors& biases,
             at::IntArrayRef activations) const {
    const c10::impl::ExcludeDispatchKeyGuard guard(key);
    const auto dtype = at::autocast::get_autocast_dtype(device);
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
  Tensor cross_entropy(const Tensor& input, const Tensor& target,
                       const std::optional<Tensor>& weight, int64_t reduction, int64_t ignore_index,
                       double label_smoothing) const {
    const c10::impl::ExcludeDispatchKeyGuard guard(key);
    return ops::cross_entropy(
        cast(input, at::kFloat), target,
        weight ? std::optional<Tensor>(cast(*weight, at::kFloat)) : std::nullopt, reduction,
        ignore_index, label_smoothing);
  }

  // Like torch.nn.functional's: in float32, but mse_loss and l1_loss with a weight, which PyTorch
  // puts together of operators that autocast does not know, as they are.
  Tensor elementwise_loss(const Tensor& input, const Tensor& target,
                          const std::optional<Tensor>& weight,
                          const std::optional<Tensor>& pos_weight, int64_t kind, int64_t reduction,
                          double parameter) const {
    const c10::impl::ExcludeDispatchKeyGuard guard(key);
    const bool as_it_is = weight && (kind == static_cast<int>(LossKind::mse) ||
                                     kind == static_cast<int>(LossKind::l1));
    const auto ready = [&](const Tensor& t) { return as_it_is ? t : cast(t, at::kFloat); };
    const auto optional = [&](const std::optional<Tensor>& t) {
      return t ? std::optional<Tensor>(ready(*t)) : std::nullopt;
    };
    return ops::elementwise_loss(ready(input), ready(target), optional(weight),
                                 optional(pos_weight), kind, reduction, parameter);
  }
};

constexpr Autocast autocast_cpu{at::kCPU, c10::DispatchKey::AutocastCPU};
constexpr Autocast autocast_cuda{at::kCUDA, c10::DispatchKey::AutocastCUDA};

}  // namespace

bool in_autocast() { return at::autocast::is_autocast_enabled(at::kCPU); }

#define MLP_EXT_AUTOCAST(device)                                                                   \
  Tensor mlp_autocast_##device(const Tensor& input, at::TensorList weights,                        \
                               const OptionalTensors& biases, at::IntArrayRef activations) {       \
    return autocast_##device.mlp(input, weights, biases, activations);                             \
  }                                                                                                \
  Tensor cross_entropy_autocast_##device(const Tensor& input, const Tensor& target,                \
                                         const std::optional<Tensor>& weight, int64_t reduction,   \
                                         int64_t ignore_index, double label_smoothing) {           \
    return autocast_##device.cross_entropy(input, target, weight, reduction, ignore_index,         \
                                           label_smoothing);                                       \
  }                                                                                                \
  Tensor elementwise_loss_autocast_##device(const Tensor& input, const Tensor& target,             \
                                            const std::optional<Tensor>& weight,                   \
                                            const std::optional<Tensor>& pos_weight, int64_t kind, \
                                            int64_t reduction, double parameter) {                 \
    return autocast_##device.elementwise_loss(input, target, weight, pos_weight, kind, reduction,  \
                                              parameter);                                          \
  }
MLP_EXT_AUTOCAST(cpu)
MLP_EXT_AUTOCAST(cuda)

}  // namespace mlp_ext
