// The losses' autograd nodes: the gradient was worked out with the loss, and is scaled.
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include "composite.h"
#include "eligibility.h"
#include "implementations.h"
#include "node_ptr.h"
#include "ops.h"
#include "unscaled_gradient.h"

namespace mlp_ext {

using at::Tensor;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

namespace {

struct CrossEntropyBackward : public torch::autograd::Node {
  SavedVariable input, target, weight, grad_input;
  int64_t reduction = 0, ignore_index = 0;
  double label_smoothing = 0;

  std::string name() const override { return "CrossEntropyBackward"; }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);  // two threads may share a graph
    const Tensor& grad = grads[0];
    if (!grad.defined() || !task_should_compute_output(0)) return {Tensor()};
    if (needs_composite_backward(grad)) {
      const Tensor w = weight.unpack();
      return {
          cross_entropy_backward_composite(grad, input.unpack(), target.unpack(),
                                           w.defined() ? std::optional<Tensor>(w) : std::nullopt,
                                           reduction, ignore_index, label_smoothing)};
    }
    // A loss of each row: the classes are the gradient's second dimension, or its only one.
    return {scaled_gradient(grad_input.unpack(), grad.dim() == 0 ? grad : grad.unsqueeze(1))};
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable* variable : {&input, &target, &weight, &grad_input}) variable->reset_data();
  }
};

}  // namespace

Tensor cross_entropy_autograd(const Tensor& input, const Tensor& target,
                              const std::optional<Tensor>& weight, int64_t reduction,
                              int64_t ignore_index, double label_smoothing) {
  if (!cross_entropy_has_kernel(input, target, weight, ignore_index, label_smoothing) ||
      in_functorch() || has_tangent(input) || has_tangent(target) ||
      has_tangent(weight.value_or(Tensor()))) {
    return cross_entropy_composite(input, target, weight, reduction, ignore_index, label_smoothing);
  }
  if (!at::GradMode::is_enabled() || !input.requires_grad()) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return ops::cross_entropy(input, target, weight, reduction, ignore_index, label_smoothing);
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
  node->input = SavedVariable(input, /*is_output=*/false);
  node->target = SavedVariable(target, /*is_output=*/false);
  node->weight = SavedVariable(weight.value_or(Tensor()), /*is_output=*/false);
  node->grad_input = SavedVariable(grad_input, /*is_output=*/false);
  node->reduction = reduction;
  node->ignore_index = ignore_index;
  node->label_smoothing = label_smoothing;
  return loss;
}

namespace {

struct ElementwiseLossBackward : public torch::autograd::Node {
  SavedVariable input, target, weight, pos_weight, grad_input;
  int64_t kind = 0, reduction = 0;
  double parameter = 0;

  std::string name() const override { return "ElementwiseLossBackward"; }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);  // two threads may share a graph
    const Tensor& grad = grads[0];
    const bool of_input = task_should_compute_output(0), of_target = task_should_compute_output(1);
    if (!grad.defined() || (!of_input && !of_target)) return {Tensor(), Tensor()};
    const Tensor dx = gradient(grad);
    return {of_input ? dx : Tensor(), of_target ? -dx : Tensor()};
  }

  Tensor gradient(const Tensor& grad) {
    if (!needs_composite_backward(grad)) return scaled_gradient(grad_input.unpack(), grad);
    const auto optional = [](const Tensor& t) {
      return t.defined() ? std::optional<Tensor>(t) : std::nullopt;
    };
    return elementwise_loss_backward_composite(
        grad, input.unpack(), target.unpack(), optional(weight.unpack()),
        optional(pos_weight.unpack()), kind, reduction, parameter);
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable* variable : {&input, &target, &weight, &pos_weight, &grad_input}) {
      variable->reset_data();
    }
  }
};

}  // namespace

Tensor elementwise_loss_autograd(const Tensor& input, const Tensor& target,
                                 const std::optional<Tensor>& weight,
                                 const std::optional<Tensor>& pos_weight, int64_t kind,
                                 int64_t reduction, double parameter) {
  const Tensor w = weight.value_or(Tensor()), pos = pos_weight.value_or(Tensor());
  if (!elementwise_loss_has_kernel(input, target, weight, pos_weight, kind, parameter) ||
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
  node->input = SavedVariable(input, /*is_output=*/false);
  node->target = SavedVariable(target, /*is_output=*/false);
  node->weight = SavedVariable(w, /*is_output=*/false);
  node->pos_weight = SavedVariable(pos, /*is_output=*/false);
  node->grad_input = SavedVariable(grad_input, /*is_output=*/false);
  node->kind = kind;
  node->reduction = reduction;
  node->parameter = parameter;
  return loss;
}

}  // namespace mlp_ext
