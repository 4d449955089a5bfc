// The autograd nodes of the losses, whose gradient was worked out with the loss.
#pragma once

#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <array>
#include <vector>

#include "node_ptr.h"

namespace mlp_ext {

struct LossOptions {
  static constexpr int64_t kCrossEntropy = -1;
  int64_t kind = kCrossEntropy;  // otherwise the row in common/loss_kind.h
  int64_t reduction = 0, ignore_index = 0;
  double number = 0;  // label_smoothing, or elementwise_loss's parameter
};

// The gradient of the input by composite.h; operands: those of LossBackward.
at::Tensor composite_gradient(const LossOptions& options, const at::Tensor& grad,
                              const std::vector<at::Tensor>& operands);
// An incoming gradient as it is to be multiplied with the input's.
at::Tensor as_factor(const LossOptions& options, const at::Tensor& grad);
// What a node returns: the gradients `wanted` of the input and, of two, of the target.
torch::autograd::variable_list of_input_and_target(const at::Tensor& dx,
                                                   const std::vector<bool>& wanted);

struct LossBackward : public torch::autograd::Node {
  // For a grad_output of 1, in the type of computation: float32 for inputs of 16 bits, which the
  // incoming gradient is applied to before it is rounded.
  torch::autograd::SavedVariable grad_input;
  at::ScalarType type = at::kFloat;  // of the input
  LossOptions options;
  // Input, target, weight, pos_weight (some undefined), which create_graph alone reads.
  std::array<torch::autograd::SavedVariable, 4> operands;

  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override;
  void release_variables() override;
  // compiled_autograd.cpp
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override;
  torch::autograd::variable_list apply_with_saved(
      const torch::autograd::variable_list& grads,
      torch::dynamo::autograd::SwapSavedVariables& swap) override;

  std::vector<bool> wanted() const;
};

// Edge: the input.
struct CrossEntropyBackward : public LossBackward {
  std::string name() const override { return "CrossEntropyBackward"; }
};

// Edges: the input, the target.
struct ElementwiseLossBackward : public LossBackward {
  std::string name() const override { return "ElementwiseLossBackward"; }
};

}  // namespace mlp_ext
