// The registered ops: their schemas, and what runs for which dispatch key. Python sees them as
// torch.ops.mlp_ext.*; their fake kernels are in mlp_ext/_ops.py. `activations` holds one code a
// layer: the row of the name in common/activation_kind.h. The ops with a leading underscore are the
// halves that autograd joins.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "../common/loss_kind.h"
#include "implementations.h"
#include "ops.h"
#include "python.h"

// What the ops do under autocast. (CUDA without kernels of ours does not come here: there the ops
// fall apart into PyTorch's operators, each of which follows the autocast lists itself.)
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

TORCH_LIBRARY(mlp_ext, m) {
  // act_L(... act_1(input W_1^T + b_1) ... W_L^T + b_L)
  m.def("mlp(Tensor input, Tensor[] weights, Tensor?[] biases, int[] activations) -> Tensor");
  // The output, then what backward needs of each layer in turn: the output of every layer but the
  // last, and the pre-activation of every layer whose activation asks for it.
  m.def(
      "_mlp_forward(Tensor input, Tensor[] weights, Tensor?[] biases, int[] activations) -> "
      "Tensor[]");
  // `saved`: the above without its first entry; then the output, if the last activation's
  // derivative is taken from it. `wanted`: which gradients to return, and in what order: 0 is the
  // input's, then come those of the L weights, then those of the L biases.
  m.def(
      "_mlp_backward(Tensor grad, Tensor input, Tensor[] weights, Tensor[] saved, "
      "int[] activations, int[] wanted) -> Tensor[]");
  // torch.nn.functional.cross_entropy. reduction: 0 none, 1 mean, 2 sum.
  m.def(
      "cross_entropy(Tensor input, Tensor target, Tensor? weight, int reduction, "
      "int ignore_index, float label_smoothing) -> Tensor");
  // The loss, and its gradient for grad_output = 1 (each row's for reduction none).
  m.def(
      "_cross_entropy_forward(Tensor input, Tensor target, Tensor? weight, int reduction, "
      "int ignore_index, float label_smoothing) -> (Tensor, Tensor)");
  // torch.nn.functional.mse_loss, l1_loss, huber_loss (parameter: delta), smooth_l1_loss
  // (parameter: beta) and binary_cross_entropy_with_logits of tensors of one shape. kind: the row
  // in common/loss_kind.h.
  m.def(
      "elementwise_loss(Tensor input, Tensor target, Tensor? weight, Tensor? pos_weight, int kind, "
      "int reduction, float parameter) -> Tensor");
  // The loss, and its gradient with respect to the input for grad_output = 1 (each element's for
  // reduction none).
  m.def(
      "_elementwise_loss_forward(Tensor input, Tensor target, Tensor? weight, Tensor? pos_weight, "
      "int kind, int reduction, float parameter) -> (Tensor, Tensor)");
}

namespace mlp_ext {

#if !defined(MLP_EXT_ON_HOST)
TORCH_LIBRARY_IMPL(mlp_ext, CPU, m) {
  m.impl("mlp", mlp_cpu);
  m.impl("_mlp_forward", mlp_forward_cpu);
  m.impl("_mlp_backward", mlp_backward_cpu);
  m.impl("cross_entropy", cross_entropy_cpu);
  m.impl("_cross_entropy_forward", cross_entropy_forward_cpu);
  m.impl("elementwise_loss", elementwise_loss_cpu);
  m.impl("_elementwise_loss_forward", elementwise_loss_forward_cpu);
}
#endif

// Backends without kernels of ours: PyTorch's operators. (CUDA's are in cuda/registration_cuda.cpp,
// where that half is built.)
TORCH_LIBRARY_IMPL(mlp_ext, CompositeExplicitAutograd, m) {
  m.impl("mlp", mlp_composite);
  m.impl("cross_entropy", cross_entropy_composite);
  m.impl("elementwise_loss", elementwise_loss_composite);
}

TORCH_LIBRARY_IMPL(mlp_ext, Autograd, m) {
  m.impl("mlp", mlp_autograd);
  m.impl("cross_entropy", cross_entropy_autograd);
  m.impl("elementwise_loss", elementwise_loss_autograd);
}

TORCH_LIBRARY_IMPL(mlp_ext, AutocastCPU, m) {
  m.impl("mlp", mlp_autocast_cpu);
  m.impl("cross_entropy", cross_entropy_autocast_cpu);
  m.impl("elementwise_loss", elementwise_loss_autocast_cpu);
}

TORCH_LIBRARY_IMPL(mlp_ext, AutocastCUDA, m) {
#if defined(MLP_EXT_WITH_CUDA)
  m.impl("mlp", mlp_autocast_cuda);
  m.impl("cross_entropy", cross_entropy_autocast_cuda);
  m.impl("elementwise_loss", elementwise_loss_autocast_cuda);
#else
  m.impl("mlp", mlp_composite);
  m.impl("cross_entropy", cross_entropy_composite);
  m.impl("elementwise_loss", elementwise_loss_composite);
#endif
}

// torch.jit.trace knows no optional tensors in lists, and its graph is for runtimes without our
// ops.
TORCH_LIBRARY_IMPL(mlp_ext, Tracer, m) {
  m.impl("mlp", mlp_composite);
  m.impl("cross_entropy", cross_entropy_composite);
  m.impl("elementwise_loss", elementwise_loss_composite);
}

// Inside torch.func's grad, vmap, jvp and their compositions the ops fall apart into PyTorch's
// operators before the transform looks at them: those have batching rules and forward derivatives.
TORCH_LIBRARY_IMPL(mlp_ext, FuncTorchDynamicLayerFrontMode, m) {
  m.impl("mlp", mlp_composite);
  m.impl("cross_entropy", cross_entropy_composite);
  m.impl("elementwise_loss", elementwise_loss_composite);
}

}  // namespace mlp_ext
