// The functions behind the registered ops, by dispatch key; registration.cpp joins the two.
#pragma once

#include <tuple>
#include <vector>

#include "composite.h"

namespace mlp_ext {

// ---- CPU, CUDA

// Those of CUDA are there in a build with that half (cuda/).
#define MLP_EXT_DEVICE(device)                                                                    \
  at::Tensor mlp_##device(const at::Tensor& input, at::TensorList weights,                        \
                          const OptionalTensors& biases, at::IntArrayRef activations);            \
  std::vector<at::Tensor> mlp_forward_##device(const at::Tensor& input, at::TensorList weights,   \
                                               const OptionalTensors& biases,                     \
                                               at::IntArrayRef activations);                      \
  std::vector<at::Tensor> mlp_backward_##device(                                                  \
      const at::Tensor& grad, const at::Tensor& input, at::TensorList weights,                    \
      at::TensorList saved, at::IntArrayRef activations, at::IntArrayRef wanted);                 \
  at::Tensor cross_entropy_##device(const at::Tensor& input, const at::Tensor& target,            \
                                    const std::optional<at::Tensor>& weight, int64_t reduction,   \
                                    int64_t ignore_index, double label_smoothing);                \
  std::tuple<at::Tensor, at::Tensor> cross_entropy_forward_##device(                              \
      const at::Tensor& input, const at::Tensor& target, const std::optional<at::Tensor>& weight, \
      int64_t reduction, int64_t ignore_index, double label_smoothing);                           \
  at::Tensor elementwise_loss_##device(const at::Tensor& input, const at::Tensor& target,         \
                                       const std::optional<at::Tensor>& weight,                   \
                                       const std::optional<at::Tensor>& pos_weight, int64_t kind, \
                                       int64_t reduction, double parameter);                      \
  std::tuple<at::Tensor, at::Tensor> elementwise_loss_forward_##device(                           \
      const at::Tensor& input, const at::Tensor& target, const std::optional<at::Tensor>& weight, \
      const std::optional<at::Tensor>& pos_weight, int64_t kind, int64_t reduction,               \
      double parameter);
MLP_EXT_DEVICE(cpu)
MLP_EXT_DEVICE(cuda)
#undef MLP_EXT_DEVICE

// ---- Autograd

at::Tensor mlp_autograd(const at::Tensor& input, at::TensorList weights,
                        const OptionalTensors& biases, at::IntArrayRef activations);
at::Tensor cross_entropy_autograd(const at::Tensor& input, const at::Tensor& target,
                                  const std::optional<at::Tensor>& weight, int64_t reduction,
                                  int64_t ignore_index, double label_smoothing);
at::Tensor elementwise_loss_autograd(const at::Tensor& input, const at::Tensor& target,
                                     const std::optional<at::Tensor>& weight,
                                     const std::optional<at::Tensor>& pos_weight, int64_t kind,
                                     int64_t reduction, double parameter);

// ---- AutocastCPU, AutocastCUDA

#define MLP_EXT_AUTOCAST(device)                                                                  \
  at::Tensor mlp_autocast_##device(const at::Tensor& input, at::TensorList weights,               \
                                   const OptionalTensors& biases, at::IntArrayRef activations);   \
  at::Tensor cross_entropy_autocast_##device(                                                     \
      const at::Tensor& input, const at::Tensor& target, const std::optional<at::Tensor>& weight, \
      int64_t reduction, int64_t ignore_index, double label_smoothing);                           \
  at::Tensor elementwise_loss_autocast_##device(                                                  \
      const at::Tensor& input, const at::Tensor& target, const std::optional<at::Tensor>& weight, \
      const std::optional<at::Tensor>& pos_weight, int64_t kind, int64_t reduction,               \
      double parameter);
MLP_EXT_AUTOCAST(cpu)
MLP_EXT_AUTOCAST(cuda)
#undef MLP_EXT_AUTOCAST

}  // namespace mlp_ext
