// The ops in PyTorch's own differentiable operators: what runs for everything that the kernels do
// not take (other devices and dtypes, forward-mode AD, torch.func), and the backward pass under
// create_graph. Results and errors are PyTorch's.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <vector>

#include "../common/activation_kind.h"

namespace mlp_ext {

using OptionalTensors = c10::List<std::optional<at::Tensor>>;

at::Tensor activation_composite(const at::Tensor& x, Activation activation);

at::Tensor mlp_composite(const at::Tensor& input, at::TensorList weights,
                         const OptionalTensors& biases, at::IntArrayRef activations);

// The gradients of `needs` (input, weights, biases), the others undefined; differentiable again.
std::vector<at::Tensor> mlp_backward_composite(const at::Tensor& grad, const at::Tensor& input,
                                               at::TensorList weights,
                                               const std::vector<at::Tensor>& biases,
                                               at::IntArrayRef activations,
                                               const std::vector<bool>& needs);

at::Tensor cross_entropy_composite(const at::Tensor& input, const at::Tensor& target,
                                   const std::optional<at::Tensor>& weight, int64_t reduction,
                                   int64_t ignore_index, double label_smoothing);

// d loss / d input for a scalar (or, without reduction, a row-wise) grad; differentiable again.
at::Tensor cross_entropy_backward_composite(const at::Tensor& grad, const at::Tensor& input,
                                            const at::Tensor& target,
                                            const std::optional<at::Tensor>& weight,
                                            int64_t reduction, int64_t ignore_index,
                                            double label_smoothing);

}  // namespace mlp_ext
