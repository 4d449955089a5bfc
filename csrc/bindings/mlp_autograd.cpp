// Autograd of the stack: one node, written against torch::autograd::Node as PyTorch's own generated
// nodes are. (torch::autograd::Function does the same with more copying of argument lists; the
// measured difference is in CONTRIBUTING.md.)
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>

#include "composite.h"
#include "eligibility.h"
#include "implementations.h"
#include "node_ptr.h"
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

// A tensor that only create_graph's recomputation reads. It is not saved as the others are, since
// the first-order pass neither needs it nor minds its being changed.
struct Watched {
  Tensor tensor;  // undefined for none
  uint32_t version = 0;

  explicit Watched(const Tensor& t) : tensor(t) {
    if (t.defined() && !t.is_inference()) version = t._version();
  }
  const Tensor& unchanged() const {
    TORCH_CHECK(!tensor.defined() || tensor.is_inference() || tensor._version() == version,
                "one of the variables needed for gradient computation has been modified by an "
                "inplace operation: a bias of shape ",
                tensor.sizes(), " is at version ", tensor._version(), "; expected version ",
                version, " instead");
    return tensor;
  }
};

struct MlpBackward : public torch::autograd::Node {
  std::vector<int64_t> activations;
  SavedVariable input;  // empty if keeps_input is false
  bool keeps_input = true;
  c10::SymDimVector input_sizes;
  std::vector<SavedVariable> weights;
  std::vector<SavedVariable> saved;  // _mlp_backward's, but for the output; empty if not read
  SavedVariable output;              // if last_saves_output
  std::vector<Watched> biases;
  // What _mlp_backward gets for the input and the weights whose values no gradient depends on
  // (those of frozen layers, and the first weight of a net whose input has no gradient): right in
  // shape, but not checked for changes, since PyTorch minds only what it reads.
  Tensor input_stand_in;
  std::vector<Tensor> weight_stand_ins;

  std::string name() const override { return "MlpBackward"; }

  // Edges: input, weights, then biases, those without a bias included, so edge i is gradient i.
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);  // two threads may share a graph
    const size_t layers = activations.size();
    variable_list result(1 + 2 * layers);
    const Tensor& grad = grads[0];
    if (!grad.defined()) return result;

    if (needs_composite_backward(grad)) {
      std::vector<bool> needs(result.size());
      for (size_t i = 0; i < needs.size(); ++i) needs[i] = task_should_compute_output(i);
      if (!keeps_input) {
        const Tensor y = last_saves_output(activations) ? output.unpack(getptr()) : Tensor();
        return frozen_backward_composite(grad, y, input_sizes, unpacked(weights), activations,
                                         needs);
      }
      std::vector<Tensor> b;
      for (const Watched& bias : biases) b.push_back(bias.unchanged());
      return mlp_backward_composite(grad, input.unpack(), unpacked(weights), b, activations, needs);
    }

    const Tensor x = input_stand_in.defined() ? input_stand_in : input.unpack();
    std::vector<Tensor> w;
    w.reserve(layers);
    for (size_t l = 0; l < layers; ++l) {
      w.push_back(weight_stand_ins[l].defined() ? weight_stand_ins[l] : weights[l].unpack());
    }
    std::vector<Tensor> outputs = unpacked(saved);
    for (Tensor& unread : outputs) {
      if (!unread.defined()) unread = grad;
    }
    if (last_saves_output(activations)) outputs.push_back(output.unpack(getptr()));
    c10::SmallVector<int64_t, 16> wanted;
    for (size_t i = 0; i < result.size(); ++i) {
      if (task_should_compute_output(i)) wanted.push_back(static_cast<int64_t>(i));
    }
    std::vector<Tensor> computed = ops::mlp_backward(grad, x, w, outputs, activations, wanted);
    for (size_t i = 0; i < wanted.size(); ++i) result[wanted[i]] = std::move(computed[i]);
    return result;
  }

  // The stand-ins stay: they keep no memory of the graph's, and a second backward that reads
  // nothing else is allowed, as in PyTorch.
  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    input.reset_data();
    output.reset_data();
    for (auto* list : {&weights, &saved}) {
      for (SavedVariable& variable : *list) variable.reset_data();
    }
    for (Watched& bias : biases) bias.tensor.reset();
  }

 private:
  static std::vector<Tensor> unpacked(const std::vector<SavedVariable>& variables) {
    std::vector<Tensor> tensors;
    tensors.reserve(variables.size());
    for (const SavedVariable& variable : variables) tensors.push_back(variable.unpack());
    return tensors;
  }
};

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
  node->weights.reserve(layers);
  node->weight_stand_ins.reserve(layers);
  node->biases.reserve(layers);
  for (size_t l = 0; l < layers; ++l) {
    const Tensor bias = biases.get(l).value_or(Tensor());
    add_edge(bias);
    node->weights.emplace_back(weights[l], /*is_output=*/false);
    node->weight_stand_ins.push_back(required.before(l) ? Tensor() : weights[l].variable_data());
    node->biases.emplace_back(bias);
  }
  node->set_next_edges(std::move(edges));
  node->activations = activations.vec();
  // What PyTorch does not keep either. (A frozen stack with activations between its layers keeps
  // its input for create_graph, which works them out anew.)
  const bool frozen =
      std::none_of(required.weight.begin(), required.weight.end(), [](bool is) { return is; });
  node->keeps_input = !frozen || !is_linear_below_output(activations);
  if (node->keeps_input) {
    node->input = SavedVariable(input, /*is_output=*/false);
  } else {
    node->input_sizes = input.sym_sizes();
  }
  if (!required.weight[0]) {
    node->input_stand_in = at::empty({1}, input.options()).expand_symint(input.sym_sizes());
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
