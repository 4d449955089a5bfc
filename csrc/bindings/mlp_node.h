// The autograd node of the stack.
#pragma once

#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <vector>

#include "composite.h"
#include "node_ptr.h"

namespace mlp_ext {

// A tensor whose values only create_graph's recomputation reads. It is not saved as the others are,
// since the first-order pass neither needs it nor minds its being changed, and it may be one of
// inference_mode, which PyTorch refuses to save.
class Watched {
 public:
  Watched() = default;
  explicit Watched(const at::Tensor& t) : tensor_(t) {
    if (t.defined() && !t.is_inference()) version_ = t._version();
  }
  // Undefined for none.
  const at::Tensor& unchanged() const;
  const at::Tensor& tensor() const { return tensor_; }
  at::Tensor& tensor() { return tensor_; }
  void release() {
    released_ = tensor_.defined();
    tensor_.reset();
  }

 private:
  at::Tensor tensor_;
  uint32_t version_ = 0;
  bool released_ = false;
};

// The input or a weight. Where no gradient depends on its values (those of frozen layers, and the
// first weight of a net whose input has no gradient) _mlp_backward gets a stand-in: right in shape,
// but not checked for changes, since PyTorch minds only what it reads.
struct Operand {
  torch::autograd::SavedVariable saved;  // without a stand-in
  Watched watched;                       // with one
  at::Tensor stand_in;

  at::Tensor for_backward() const { return stand_in.defined() ? stand_in : saved.unpack(); }
  at::Tensor values() const { return stand_in.defined() ? watched.unchanged() : saved.unpack(); }
  // The stand-in stays: it keeps no memory of the graph's, and a second backward that reads nothing
  // else is allowed, as in PyTorch.
  void release() {
    saved.reset_data();
    watched.release();
  }
};

// The gradients `wanted` at their places, the others undefined. `saved`: undefined where it is not
// read.
torch::autograd::variable_list mlp_gradients(const at::Tensor& grad, const at::Tensor& input,
                                             at::TensorList weights, std::vector<at::Tensor> saved,
                                             at::IntArrayRef activations, at::IntArrayRef wanted);

// Edges: input, weights, then biases, those without a bias included, so edge i is gradient i.
struct MlpBackward : public torch::autograd::Node {
  std::vector<int64_t> activations;
  Operand input;  // its stand-in alone if keeps_input is false
  bool keeps_input = true;
  c10::SymDimVector input_sizes;
  std::vector<Operand> weights;
  // _mlp_backward's, but for the output; empty if not read
  std::vector<torch::autograd::SavedVariable> saved;
  torch::autograd::SavedVariable output;  // if the last activation's derivative is taken from it
  std::vector<Watched> biases;

  std::string name() const override { return "MlpBackward"; }
  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override;
  void release_variables() override;
  // compiled_autograd.cpp
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override;
  torch::autograd::variable_list apply_with_saved(
      const torch::autograd::variable_list& grads,
      torch::dynamo::autograd::SwapSavedVariables& swap) override;

  bool last_saves_output() const;
  std::vector<int64_t> wanted() const;
};

}  // namespace mlp_ext
