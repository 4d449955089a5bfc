// Autograd of the stack: one node, written against torch::autograd::Node as PyTorch's own generated
// nodes are. (torch::autograd::Function does the same with more copying of argument lists; the
// measured difference is in CONTRIBUTING.md.)
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <algorithm>

#include "composite.h"
#include "eligibility.h"
#include "implementations.h"
#include "mlp_node.h"
#include "ops.h"

namespace mlp_ext {

using at::Tensor;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

namespace {

bool last_saves_output(at::IntArrayRef activations) {
  const auto last = static_cast<Activation>(activations.back());
  return last != Activation::none && !saves_input(last);
}

}  // namespace

const Tensor& Watched::unchanged() const {
  TORCH_CHECK(!released_, torch::autograd::ERR_BACKWARD_TWICE);
  TORCH_CHECK(!tensor_.defined() || tensor_.is_inference() || tensor_._version() == version_,
              "one of the variables needed for gradient computation has been modified by an "
              "inplace operation: a tensor of shape ",
              tensor_.sizes(), " is at version ", tensor_._version(), "; expected version ",
              version_, " instead");
  return tensor_;
}

variable_list mlp_gradients(const Tensor& grad, const Tensor& input, at::TensorList weights,
                            std::vector<Tensor> saved, at::IntArrayRef activations,
                            at::IntArrayRef wanted) {
  for (Tensor& unread : saved) {
    if (!unread.defined()) unread = grad;
  }
  std::vector<Tensor> computed =
      ops::mlp_backward(grad, input, weights, saved, activations, wanted);
  variable_list result(1 + 2 * weights.size());
  for (size_t i = 0; i < wanted.size(); ++i) result[wanted[i]] = std::move(computed[i]);
  return result;
}

bool MlpBackward::last_saves_output() const { return mlp_ext::last_saves_output(activations); }

std::vector<int64_t> MlpBackward::wanted() const {
  std::vector<int64_t> indices;
  indices.reserve(num_outputs());
  for (size_t i = 0; i < num_outputs(); ++i) {
    if (task_should_compute_output(i)) indices.push_back(static_cast<int64_t>(i));
  }
  return indices;
}

variable_list MlpBackward::apply(variable_list&& grads) {
  const std::lock_guard<std::mutex> lock(mutex_);  // two threads may share a graph
  const Tensor& grad = grads[0];
  if (!grad.defined()) return variable_list(num_outputs());
  std::vector<Tensor> w;
  w.reserve(weights.size());
  if (needs_composite_backward(grad)) {
    std::vector<bool> needs(num_outputs());
    for (size_t i = 0; i < needs.size(); ++i) needs[i] = task_should_compute_output(i);
    for (const Operand& weight : weights) w.push_back(weight.values());
    if (!keeps_input) {
      const Tensor y = last_saves_output() ? output.unpack(getptr()) : Tensor();
      return frozen_backward_composite(grad, y, input_sizes, w, activations, needs);
    }
    std::vector<Tensor> b;
    for (const Watched& bias : biases) b.push_back(bias.unchanged());
    return mlp_backward_composite(grad, input.values(), w, b, activations, needs);
  }
  for (const Operand& weight : weights) w.push_back(weight.for_backward());
  std::vector<Tensor> outputs;
  outputs.reserve(saved.size() + 1);
  for (const SavedVariable& variable : saved) outputs.push_back(variable.unpack());
  if (last_saves_output()) outputs.push_back(output.unpack(getptr()));
  return mlp_gradients(grad, input.for_backward(), w, std::move(outputs), activations, wanted());
}

void MlpBackward::release_variables() {
  const std::lock_guard<std::mutex> lock(mutex_);
  input.release();
  output.reset_data();
  for (Operand& weight : weights) weight.release();
  for (SavedVariable& variable : saved) variable.reset_data();
  for (Watched& bias : biases) bias.release();
}

namespace {

bool any_requires_grad(const Tensor& input, at::TensorList weights, const OptionalTensors& biases) {
  if (!at::GradMode::is_enabled()) return false;
  if (input.requires_grad()) return true;
  for (const Tensor& weight : weights) {
    if (weight.requires_grad()) return true;
  }
  for (size_t l = 0; l < biases.size(); ++l) {
    const std::optional<Tensor> bias = biases.get(l);
    if (bias && bias->requires_grad()) return true;
  }
  return false;
}

bool any_inference(const Tensor& input, at::TensorList weights, const OptionalTensors& biases) {
  bool any = input.is_inference();
  for (size_t l = 0; l < weights.size(); ++l) {
    const std::optional<Tensor> bias = biases.get(l);
    any = any || weights[l].is_inference() || (bias && bias->is_inference());
  }
  return any;
}

bool any_tangent(const Tensor& input, at::TensorList weights, const OptionalTensors& biases) {
  if (has_tangent(input)) return true;
  for (const Tensor& weight : weights) {
    if (has_tangent(weight)) return true;
  }
  for (size_t l = 0; l < biases.size(); ++l) {
    const std::optional<Tensor> bias = biases.get(l);
    if (bias && has_tangent(*bias)) return true;
  }
  return false;
}

// Which parts of a stack have gradients to compute.
struct Requirements {
  c10::SmallVector<bool, 8> weight;     // of this layer's weight
  c10::SmallVector<bool, 8> here_down;  // of this layer or anything before it, the input included
  bool input;

  Requirements(const Tensor& x, at::TensorList weights, const OptionalTensors& biases)
      : input(x.requires_grad()) {
    bool any = input;
    for (size_t l = 0; l < weights.size(); ++l) {
      const std::optional<Tensor> bias = biases.get(l);
      weight.push_back(weights[l].requires_grad());
      any = any || weight.back() || (bias && bias->requires_grad());
      here_down.push_back(any);
    }
  }
  bool before(size_t l) const { return l == 0 ? input : here_down[l - 1]; }
};

// Keeps of _mlp_forward's outputs what _mlp_backward will read.
void save_outputs(MlpBackward& node, const std::vector<Tensor>& outputs,
                  at::IntArrayRef activations, const Requirements& required) {
  const auto save = [&node](const Tensor& t, bool read) {
    node.saved.push_back(read ? SavedVariable(t, /*is_output=*/false) : SavedVariable());
  };
  const size_t layers = activations.size();
  node.saved.reserve(outputs.size() - 1);
  size_t next = 1;
  for (size_t l = 0; l < layers; ++l) {
    const auto activation = static_cast<Activation>(activations[l]);
    if (l + 1 < layers) {
      const bool for_derivative = activation != Activation::none && !saves_input(activation);
      save(outputs[next++], required.weight[l + 1] || (for_derivative && required.here_down[l]));
    }
    if (saves_input(activation)) save(outputs[next++], required.here_down[l]);
  }
}

void keep(Operand& operand, const Tensor& t, const Tensor& stand_in) {
  operand.stand_in = stand_in;
  if (stand_in.defined()) {
    operand.watched = Watched(t);
  } else {
    operand.saved = SavedVariable(t, /*is_output=*/false);
  }
}

NodePtr<MlpBackward> make_node(const Tensor& input, at::TensorList weights,
                               const OptionalTensors& biases, at::IntArrayRef activations,
                               const Requirements& required) {
  const size_t layers = weights.size();
  NodePtr<MlpBackward> node = make_node_ptr<MlpBackward>();
  torch::autograd::edge_list edges;
  edges.reserve(1 + 2 * layers);
  const auto add_edge = [&edges](const Tensor& t) {
    edges.push_back(t.defined() ? torch::autograd::impl::gradient_edge(t)
                                : torch::autograd::Edge());
  };
  add_edge(input);
  for (const Tensor& weight : weights) add_edge(weight);
  node->weights.resize(layers);
  node->biases.reserve(layers);
  for (size_t l = 0; l < layers; ++l) {
    const Tensor bias = biases.get(l).value_or(Tensor());
    add_edge(bias);
    keep(node->weights[l], weights[l], required.before(l) ? Tensor() : weights[l].variable_data());
    node->biases.emplace_back(bias);
  }
  node->set_next_edges(std::move(edges));
  node->activations = activations.vec();
  // What PyTorch does not keep either. (A frozen stack with activations between its layers keeps
  // its input for create_graph, which works them out anew.)
  const bool frozen =
      std::none_of(required.weight.begin(), required.weight.end(), [](bool is) { return is; });
  node->keeps_input = !frozen || !is_linear_below_output(activations);
  Tensor stand_in;
  if (!required.weight[0]) {
    stand_in = at::empty({1}, input.options()).expand_symint(input.sym_sizes());
  }
  if (node->keeps_input) {
    keep(node->input, input, stand_in);
  } else {
    node->input.stand_in = stand_in;
    node->input_sizes = input.sym_sizes();
  }
  return node;
}

}  // namespace

Tensor mlp_autograd(const Tensor& input, at::TensorList weights, const OptionalTensors& biases,
                    at::IntArrayRef activations) {
  if (!stack_has_kernel(input, weights, biases, activations) || in_functorch() ||
      any_tangent(input, weights, biases)) {
    return mlp_composite(input, weights, biases, activations);
  }
  if (!any_requires_grad(input, weights, biases)) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return ops::mlp(input, weights, biases, activations);
  }
  if (any_inference(input, weights, biases)) {
    return mlp_composite(input, weights, biases, activations);  // PyTorch knows what it may save
  }
  const Requirements required(input, weights, biases);
  const NodePtr<MlpBackward> node = make_node(input, weights, biases, activations, required);
  std::vector<Tensor> outputs;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    outputs = ops::mlp_forward(input, weights, biases, activations);
  }
  Tensor& output = outputs[0];
  torch::autograd::set_history(output, node);
  save_outputs(*node, outputs, activations, required);
  if (last_saves_output(activations)) node->output = SavedVariable(output, /*is_output=*/true);
  return output;
}

}  // namespace mlp_ext
