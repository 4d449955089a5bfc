// The losses' autograd nodes: the gradient was worked out with the loss, and is scaled.
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <algorithm>

#include "composite.h"
#include "eligibility.h"
#include "implementations.h"
#include "loss_nodes.h"
#include "ops.h"
#include "unscaled_gradient.h"

namespace mlp_ext {

using at::Tensor;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

Tensor composite_gradient(const LossOptions& options, const Tensor& grad,
                          const std::vector<Tensor>& operands) {
  const auto optional = [&operands](size_t i) {
    return operands[i].defined() ? std::optional<Tensor>(operands[i]) : std::nullopt;
  };
  if (options.kind == LossOptions::kCrossEntropy) {
    return cross_entropy_backward_composite(grad, operands[0], operands[1], optional(2),
                                            options.reduction, options.ignore_index,
                                            options.number);
  }
  return elementwise_loss_backward_composite(grad, operands[0], operands[1], optional(2),
                                             optional(3), options.kind, options.reduction,
                                             options.number);
}

// Of a loss of each row the classes are the second dimension of the input, or its only one.
Tensor as_factor(const LossOptions& options, const Tensor& grad) {
  const bool is_by_row = options.kind == LossOptions::kCrossEntropy && grad.dim() > 0;
  return is_by_row ? grad.unsqueeze(1) : grad;
}

variable_list of_input_and_target(const Tensor& dx, const std::vector<bool>& wanted) {
  variable_list result(wanted.size());
  if (wanted[0]) result[0] = dx;
  if (wanted.size() > 1 && wanted[1]) result[1] = -dx;
  return result;
}

std::vector<bool> LossBackward::wanted() const {
  std::vector<bool> wanted(num_outputs());
  for (size_t i = 0; i < wanted.size(); ++i) wanted[i] = task_should_compute_output(i);
  return wanted;
}

variable_list LossBackward::apply(variable_list&& grads) {
  const std::lock_guard<std::mutex> lock(mutex_);  // two threads may share a graph
  const Tensor& grad = grads[0];
  const std::vector<bool> wanted = this->wanted();
  const bool any = std::find(wanted.begin(), wanted.end(), true) != wanted.end();
  if (!grad.defined() || !any) return variable_list(wanted.size());
  if (!needs_composite_backward(grad)) {
    return of_input_and_target(scaled_gradient(grad_input, as_factor(options, grad), type), wanted);
  }
  std::vector<Tensor> tensors;
  for (const SavedVariable& operand : operands) tensors.push_back(operand.unpack());
  return of_input_and_target(composite_gradient(options, grad, tensors), wanted);
}

void LossBackward::release_variables() {
  const std::lock_guard<std::mutex> lock(mutex_);
  grad_input.reset_data();
  for (SavedVariable& operand : operands) operand.reset_data();
}

namespace {

void save(LossBackward& node, const LossOptions& options, const Tensor& grad_input,
          const std::array<Tensor, 4>& operands) {
  const auto saved = [](const Tensor& t) { return SavedVariable(t, /*is_output=*/false); };
  node.options = options;
  node.type = operands[0].scalar_type();
  node.grad_input = saved(grad_input);
  for (size_t i = 0; i < operands.size(); ++i) node.operands[i] = saved(operands[i]);
}

}  // namespace

Tensor cross_entropy_autograd(const Tensor& input, const Tensor& target,
                              const std::optional<Tensor>& weight, int64_t reduction,
                              int64_t ignore_index, double label_smoothing) {
  const Tensor w = weight.value_or(Tensor());
  if (!cross_entropy_has_kernel(input, target, weight, ignore_index, label_smoothing) ||
      in_functorch() || has_tangent(input) || has_tangent(target) || has_tangent(w)) {
    return cross_entropy_composite(input, target, weight, reduction, ignore_index, label_smoothing);
  }
  if (!at::GradMode::is_enabled() || !input.requires_grad()) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return ops::cross_entropy(input, target, weight, reduction, ignore_index, label_smoothing);
  }
  // PyTorch cannot save it either, but smooths probabilities before it saves them.
  if (target.is_inference()) {
    return cross_entropy_composite(input, target, weight, reduction, ignore_index, label_smoothing);
  }
  const NodePtr<CrossEntropyBackward> node = make_node_ptr<CrossEntropyBackward>();
  node->set_next_edges(torch::autograd::collect_next_edges(input));
  Tensor loss, grad_input;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    std::tie(loss, grad_input) =
        ops::cross_entropy_forward(input, target, weight, reduction, ignore_index, label_smoothing);
  }
  torch::autograd::set_history(loss, node);
  save(*node, {LossOptions::kCrossEntropy, reduction, ignore_index, label_smoothing}, grad_input,
       {input, target, w, Tensor()});
  return loss;
}

Tensor elementwise_loss_autograd(const Tensor& input, const Tensor& target,
                                 const std::optional<Tensor>& weight,
                                 const std::optional<Tensor>& pos_weight, int64_t kind,
                                 int64_t reduction, double parameter) {
  const Tensor w = weight.value_or(Tensor()), pos = pos_weight.value_or(Tensor());
  // Which of its tensors a loss saves, and so refuses if they were made under inference_mode, is
  // PyTorch's affair.
  if (input.is_inference() || target.is_inference() ||
      !elementwise_loss_has_kernel(input, target, weight, pos_weight, kind, parameter) ||
      in_functorch() || has_tangent(input) || has_tangent(target) || has_tangent(w) ||
      has_tangent(pos)) {
    return elementwise_loss_composite(input, target, weight, pos_weight, kind, reduction,
                                      parameter);
  }
  if (!at::GradMode::is_enabled() || !(input.requires_grad() || target.requires_grad())) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return ops::elementwise_loss(input, target, weight, pos_weight, kind, reduction, parameter);
  }
  const NodePtr<ElementwiseLossBackward> node = make_node_ptr<ElementwiseLossBackward>();
  node->set_next_edges(torch::autograd::collect_next_edges(input, target));
  Tensor loss, grad_input;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    std::tie(loss, grad_input) = ops::elementwise_loss_forward(input, target, weight, pos_weight,
                                                               kind, reduction, parameter);
  }
  torch::autograd::set_history(loss, node);
  save(*node, {kind, reduction, /*ignore_index=*/0, parameter}, grad_input,
       {input, target, w, pos});
  return loss;
}

}  // namespace mlp_ext
