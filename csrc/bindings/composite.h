// The ops in PyTorch's own differentiable operators: what runs for everything that the kernels do
// not take (other devices and dtypes, forward-mode AD, torch.func), and the backward pass under
// create_graph. Results and errors are PyTorch's.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <vector>

#include "../common/activation_kind.h"
#include "../common/loss_kind.h"

namespace mlp_ext {

using OptionalTensors = c10::List<std::optional<at::Tensor>>;

// Throws ValueError for a code that is none.
Activation checked_activation(int64_t code);

// Throws ValueError for an activation code that does not exist and for lists of different lengths,
// which PyTorch has no word for.
void check_stack_lists(at::TensorList weights, const OptionalTensors& biases,
                       at::IntArrayRef activations);

at::Tensor activation_composite(const at::Tensor& x, Activation activation);

at::Tensor mlp_composite(const at::Tensor& input, at::TensorList weights,
                         const OptionalTensors& biases, at::IntArrayRef activations);

// The gradients of `needs` (input, weights, biases), the others undefined; differentiable again.
std::vector<at::Tensor> mlp_backward_composite(const at::Tensor& grad, const at::Tensor& input,
                                               at::TensorList weights,
                                               const std::vector<at::Tensor>& biases,
                                               at::IntArrayRef activations,
                                               const std::vector<bool>& needs);

// The same for a stack whose weights are frozen, without its input, which then need not be kept:
// for linear layers, the last with an activation whose derivative is taken from the output. None of
// the weights' gradients is given. `output`: not read without an activation.
bool is_linear_below_output(at::IntArrayRef activations);
std::vector<at::Tensor> frozen_backward_composite(const at::Tensor& grad, const at::Tensor& output,
                                                  c10::SymIntArrayRef input_sizes,
                                                  at::TensorList weights,
                                                  at::IntArrayRef activations,
                                                  const std::vector<bool>& needs);

at::Tensor cross_entropy_composite(const at::Tensor& input, const at::Tensor& target,
                                   const std::optional<at::Tensor>& weight, int64_t reduction,
                                   int64_t ignore_index, double label_smoothing);

// d loss / d input for a scalar (or, without reduction, a row-wise) grad; differentiable again, but
// not with respect to probabilities.
at::Tensor cross_entropy_backward_composite(const at::Tensor& grad, const at::Tensor& input,
                                            const at::Tensor& target,
                                            const std::optional<at::Tensor>& weight,
                                            int64_t reduction, int64_t ignore_index,
                                            double label_smoothing);

// Throws ValueError for a code that is none of elementwise_loss's: all but bce.
LossKind checked_loss(int64_t code);

// kind: the row in common/loss_kind.h, all but bce. The functions of torch.nn.functional, for
// input and target of one shape; ValueError for a weight where that function has none.
at::Tensor elementwise_loss_composite(const at::Tensor& input, const at::Tensor& target,
                                      const std::optional<at::Tensor>& weight,
                                      const std::optional<at::Tensor>& pos_weight, int64_t kind,
                                      int64_t reduction, double parameter);

// d loss / d input, for what the kernels take; differentiable again.
at::Tensor elementwise_loss_backward_composite(const at::Tensor& grad, const at::Tensor& input,
                                               const at::Tensor& target,
                                               const std::optional<at::Tensor>& weight,
                                               const std::optional<at::Tensor>& pos_weight,
                                               int64_t kind, int64_t reduction, double parameter);

}  // namespace mlp_ext
