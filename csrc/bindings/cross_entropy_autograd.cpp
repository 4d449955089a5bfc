// Autograd of softmax cross-entropy: forward keeps the gradient that it found, backward scales it.
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

}  // namespace mlp_ext
