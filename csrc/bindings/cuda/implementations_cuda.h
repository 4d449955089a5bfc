// The functions behind the registered ops on CUDA; registration_cuda.cpp joins the two. Signatures
// and semantics are those of the CPU's (../implementations.h).
#pragma once

#include <tuple>
#include <vector>

#include "../composite.h"

namespace mlp_ext {

at::Tensor mlp_cuda(const at::Tensor& input, at::TensorList weights, const OptionalTensors& biases,
                    at::IntArrayRef activations);
std::vector<at::Tensor> mlp_forward_cuda(const at::Tensor& input, at::TensorList weights,
                                         const OptionalTensors& biases,
                                         at::IntArrayRef activations);
std::vector<at::Tensor> mlp_backward_cuda(const at::Tensor& grad, const at::Tensor& input,
                                          at::TensorList weights, at::TensorList saved,
                                          at::IntArrayRef activations, at::IntArrayRef wanted);
at::Tensor cross_entropy_cuda(const at::Tensor& input, const at::Tensor& target,
                              const std::optional<at::Tensor>& weight, int64_t reduction,
                              int64_t ignore_index, double label_smoothing);
std::tuple<at::Tensor, at::Tensor> cross_entropy_forward_cuda(
    const at::Tensor& input, const at::Tensor& target, const std::optional<at::Tensor>& weight,
    int64_t reduction, int64_t ignore_index, double label_smoothing);
at::Tensor elementwise_loss_cuda(const at::Tensor& input, const at::Tensor& target,
                                 const std::optional<at::Tensor>& weight,
                                 const std::optional<at::Tensor>& pos_weight, int64_t kind,
                                 int64_t reduction, double parameter);
std::tuple<at::Tensor, at::Tensor> elementwise_loss_forward_cuda(
    const at::Tensor& input, const at::Tensor& target, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& pos_weight, int64_t kind, int64_t reduction, double parameter);

}  // namespace mlp_ext
