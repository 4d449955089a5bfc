// The registered ops as C++ functions: calls through the dispatcher, so that autograd, autocast,
// torch.func, fake tensors and every other mode see them.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <tuple>
#include <vector>

#include "composite.h"

namespace mlp_ext::ops {

inline at::Tensor mlp(const at::Tensor& input, at::TensorList weights,
                      const OptionalTensors& biases, at::IntArrayRef activations) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("mlp_ext::mlp", "")
                             .typed<at::Tensor(const at::Tensor&, at::TensorList,
                                               const OptionalTensors&, at::IntArrayRef)>();
  return op.call(input, weights, biases, activations);
}

inline std::vector<at::Tensor> mlp_forward(const at::Tensor& input, at::TensorList weights,
                                           const OptionalTensors& biases,
                                           at::IntArrayRef activations) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("mlp_ext::_mlp_forward", "")
          .typed<std::vector<at::Tensor>(const at::Tensor&, at::TensorList, const OptionalTensors&,
                                         at::IntArrayRef)>();
  return op.call(input, weights, biases, activations);
}

inline std::vector<at::Tensor> mlp_backward(const at::Tensor& grad, const at::Tensor& input,
                                            at::TensorList weights, at::TensorList saved,
                                            at::IntArrayRef activations, at::IntArrayRef wanted) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("mlp_ext::_mlp_backward", "")
          .typed<std::vector<at::Tensor>(const at::Tensor&, const at::Tensor&, at::TensorList,
                                         at::TensorList, at::IntArrayRef, at::IntArrayRef)>();
  return op.call(grad, input, weights, saved, activations, wanted);
}

inline at::Tensor cross_entropy(const at::Tensor& input, const at::Tensor& target,
                                const std::optional<at::Tensor>& weight, int64_t reduction,
                                int64_t ignore_index, double label_smoothing) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("mlp_ext::cross_entropy", "")
          .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                            int64_t, int64_t, double)>();
  return op.call(input, target, weight, reduction, ignore_index, label_smoothing);
}

inline std::tuple<at::Tensor, at::Tensor> cross_entropy_forward(
    const at::Tensor& input, const at::Tensor& target, const std::optional<at::Tensor>& weight,
    int64_t reduction, int64_t ignore_index, double label_smoothing) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("mlp_ext::_cross_entropy_forward", "")
                             .typed<std::tuple<at::Tensor, at::Tensor>(
                                 const at::Tensor&, const at::Tensor&,
                                 const std::optional<at::Tensor>&, int64_t, int64_t, double)>();
  return op.call(input, target, weight, reduction, ignore_index, label_smoothing);
}

inline at::Tensor elementwise_loss(const at::Tensor& input, const at::Tensor& target,
                                   const std::optional<at::Tensor>& weight,
                                   const std::optional<at::Tensor>& pos_weight, int64_t kind,
                                   int64_t reduction, double parameter) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("mlp_ext::elementwise_loss", "")
          .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                            const std::optional<at::Tensor>&, int64_t, int64_t, double)>();
  return op.call(input, target, weight, pos_weight, kind, reduction, parameter);
}

inline std::tuple<at::Tensor, at::Tensor> elementwise_loss_forward(
    const at::Tensor& input, const at::Tensor& target, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& pos_weight, int64_t kind, int64_t reduction,
    double parameter) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("mlp_ext::_elementwise_loss_forward", "")
          .typed<std::tuple<at::Tensor, at::Tensor>(
              const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
              const std::optional<at::Tensor>&, int64_t, int64_t, double)>();
  return op.call(input, target, weight, pos_weight, kind, reduction, parameter);
}

}  // namespace mlp_ext::ops
