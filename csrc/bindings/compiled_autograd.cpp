// The nodes under compiled autograd (torch._dynamo.config.compiled_autograd), which records a
// backward pass as a graph. Each node says what its pass depends on (compiled_args): constants go
// into the key of the graph, tensors become its inputs. Then it puts a call of a pure function of
// those into the graph (apply_with_saved). A pass under create_graph reads other tensors, and calls
// composite.h; so the key tells the two apart.
//
// A file of its own for its header, which takes a third as long to parse as all others of torch.
#include <ATen/core/grad_mode.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <mutex>

#include "loss_nodes.h"
#include "mlp_node.h"
#include "unscaled_gradient.h"

namespace mlp_ext {

using at::Tensor;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using torch::dynamo::autograd::CompiledNodeArgs;
using torch::dynamo::autograd::IValuePacker;
using torch::dynamo::autograd::PackedArgs;
using torch::dynamo::autograd::SwapSavedVariables;

namespace {

using Tensors = std::vector<Tensor>;
using Bools = std::vector<bool>;
using Integers = std::vector<int64_t>;
using Function = variable_list (*)(const variable_list& grads,
                                   const std::vector<c10::IValue>& args);

// A node's function as the graph calls it. `types`: of what is packed, in order.
class Recorded {
 public:
  Recorded(const char* name, Function function, std::vector<at::TypePtr> types)
      : name_(name), function_(function), types_(std::move(types)) {}

  variable_list call(const torch::autograd::Node& node, const variable_list& grads,
                     const PackedArgs& args, const SwapSavedVariables& swap) {
    const auto& compiler = torch::dynamo::autograd::getPyCompilerInterface();
    // A name may be given to a function once in a process.
    std::call_once(bound_, [&] {
      name_ = compiler->bind_function(swap.get_py_compiler(), name_, function_, types_);
    });
    const auto metadata =
        IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
            torch::dynamo::autograd::get_input_metadata(node.next_edges()));
    return compiler->call_function(swap.get_py_compiler(), "apply_functional", name_, grads,
                                   args.vec(), metadata);
  }

 private:
  std::string name_;
  Function function_;
  std::vector<at::TypePtr> types_;
  std::once_flag bound_;
};

template <class... Types>
std::vector<at::TypePtr> types_of() {
  return {IValuePacker<Types>::packed_type()...};
}

}  // namespace

namespace {

// A list has no place for what is undefined: where it was, and what was defined.
struct Sparse {
  Bools defined;
  Tensors tensors;

  void add(const Tensor& t) {
    defined.push_back(t.defined());
    if (t.defined()) tensors.push_back(t);
  }
  void pack(PackedArgs& args) const {
    args.pack(defined);
    args.pack(tensors);
  }
  static Tensors unpack(PackedArgs& args) {
    const auto defined = args.unpack<Bools>();
    const auto tensors = args.unpack<Tensors>();
    Tensors result;
    size_t next = 0;
    for (const bool is : defined) result.push_back(is ? tensors[next++] : Tensor());
    return result;
  }
};
bool is_differentiated_again() { return at::GradMode::is_enabled(); }

}  // namespace

// ---- the stack

namespace {

// After the swap, or unswapped.
Tensor values_of(const Operand& operand) {
  return operand.stand_in.defined() ? operand.watched.tensor() : operand.saved.unpack();
}

// Visits what the pass reads, in one order.
template <class Operand, class Visit>
void visit_operand(Operand& operand, const Visit& visit) {
  if (!operand.stand_in.defined()) {
    visit(operand.saved);
  } else if (is_differentiated_again()) {
    visit(operand.watched.tensor());
  } else {
    visit(operand.stand_in);
  }
}

template <class Node, class Visit>
void visit_read(Node& node, const Visit& visit) {
  const bool again = is_differentiated_again();
  if (!again || node.keeps_input) visit_operand(node.input, visit);
  for (auto& weight : node.weights) visit_operand(weight, visit);
  if (again) {
    for (auto& bias : node.biases) visit(bias.tensor());
  } else {
    for (auto& variable : node.saved) visit(variable);
  }
}

variable_list stack_backward(const variable_list& grads, const std::vector<c10::IValue>& packed) {
  PackedArgs args(packed);
  const auto input = args.unpack<Tensor>();
  const auto weights = args.unpack<Tensors>();
  auto saved = Sparse::unpack(args);
  const auto activations = args.unpack<Integers>();
  const auto wanted = args.unpack<Integers>();
  if (!grads[0].defined()) return variable_list(1 + 2 * weights.size());
  return mlp_gradients(grads[0], input, weights, std::move(saved), activations, wanted);
}

variable_list differentiable_stack_backward(const variable_list& grads,
                                            const std::vector<c10::IValue>& packed) {
  PackedArgs args(packed);
  const auto outer = Sparse::unpack(args);  // the input, the output
  const auto weights = args.unpack<Tensors>();
  const auto biases = Sparse::unpack(args);
  const auto activations = args.unpack<Integers>();
  const auto wanted = args.unpack<Integers>();
  std::vector<bool> needs(1 + 2 * weights.size());
  if (!grads[0].defined()) return variable_list(needs.size());
  for (const int64_t i : wanted) needs[i] = true;
  if (outer[0].defined()) {
    return mlp_backward_composite(grads[0], outer[0], weights, biases, activations, needs);
  }
  c10::SymDimVector input_sizes(grads[0].sym_sizes());
  input_sizes.back() = weights[0].sym_size(1);
  return frozen_backward_composite(grads[0], outer[1], input_sizes, weights, activations, needs);
}

}  // namespace

void MlpBackward::compiled_args(CompiledNodeArgs& args) const {
  args.collect(is_differentiated_again());
  args.collect(activations);
  args.collect(keeps_input);
  const auto is_there = [&args](const Operand& operand) {
    args.collect(operand.stand_in.defined());
    if (is_differentiated_again()) operand.watched.unchanged();
  };
  is_there(input);
  for (const Operand& weight : weights) is_there(weight);
  for (const Watched& bias : biases) bias.unchanged();
  visit_read(*this, [&args](const auto& member) {
    if constexpr (std::is_same_v<decltype(member), const Tensor&>) {
      args.collect(member);
    } else {
      args.collect(member, /*is_output=*/false);
    }
  });
  args.collect(output, /*is_output=*/true);
}

variable_list MlpBackward::apply_with_saved(const variable_list& grads, SwapSavedVariables& swap) {
  if (!grads[0].defined()) return variable_list(num_outputs());
  visit_read(*this, [&swap](auto& member) { swap.before(member); });
  swap.before(output);
  PackedArgs args;
  Tensors w;
  static Recorded once("mlp_ext_stack_backward", stack_backward,
                       types_of<Tensor, Tensors, Bools, Tensors, Integers, Integers>());
  static Recorded again("mlp_ext_differentiable_stack_backward", differentiable_stack_backward,
                        types_of<Bools, Tensors, Tensors, Bools, Tensors, Integers, Integers>());
  Sparse rest;
  if (is_differentiated_again()) {
    Sparse outer;
    outer.add(keeps_input ? values_of(input) : Tensor());
    outer.add(output.unpack());
    outer.pack(args);
    for (const Operand& weight : weights) w.push_back(values_of(weight));
    for (const Watched& bias : biases) rest.add(bias.tensor());
  } else {
    args.pack(input.for_backward());
    for (const Operand& weight : weights) w.push_back(weight.for_backward());
    for (const SavedVariable& variable : saved) rest.add(variable.unpack());
    if (last_saves_output()) rest.add(output.unpack());
  }
  args.pack(w);
  rest.pack(args);
  args.pack(activations);
  args.pack(wanted());
  variable_list result = (is_differentiated_again() ? again : once).call(*this, grads, args, swap);
  visit_read(*this, [&swap](auto& member) { swap.after(member); });
  swap.after(output);
  return result;
}

// ---- the losses

namespace {

variable_list loss_backward(const variable_list& grads, const std::vector<c10::IValue>& packed) {
  PackedArgs args(packed);
  const auto unscaled = args.unpack<Tensor>();
  const auto type = args.unpack<at::ScalarType>();
  const LossOptions options{.kind = args.unpack<int64_t>()};
  const auto wanted = args.unpack<Bools>();
  if (!grads[0].defined()) return variable_list(wanted.size());
  return of_input_and_target(rounded_product(unscaled, as_factor(options, grads[0]), type), wanted);
}

variable_list differentiable_loss_backward(const variable_list& grads,
                                           const std::vector<c10::IValue>& packed) {
  PackedArgs args(packed);
  const auto operands = Sparse::unpack(args);
  LossOptions options;
  options.kind = args.unpack<int64_t>();
  options.reduction = args.unpack<int64_t>();
  options.ignore_index = args.unpack<int64_t>();
  options.number = args.unpack<double>();
  const auto wanted = args.unpack<Bools>();
  if (!grads[0].defined()) return variable_list(wanted.size());
  return of_input_and_target(composite_gradient(options, grads[0], operands), wanted);
}

// Visits what the pass reads, in one order.
template <class Node, class Visit>
void visit_saved(Node& node, const Visit& visit) {
  if (!is_differentiated_again()) return visit(node.grad_input);
  for (auto& operand : node.operands) visit(operand);
}

}  // namespace

void LossBackward::compiled_args(CompiledNodeArgs& args) const {
  args.collect(is_differentiated_again());
  visit_saved(*this, [&args](const SavedVariable& variable) {
    args.collect(variable, /*is_output=*/false);
  });
  args.collect(type);
  args.collect(options.kind);
  args.collect(options.reduction);
  args.collect(options.ignore_index);
  args.collect(options.number);
}

variable_list LossBackward::apply_with_saved(const variable_list& grads, SwapSavedVariables& swap) {
  static Recorded once("mlp_ext_loss_backward", loss_backward,
                       types_of<Tensor, at::ScalarType, int64_t, Bools>());
  static Recorded again("mlp_ext_differentiable_loss_backward", differentiable_loss_backward,
                        types_of<Bools, Tensors, int64_t, int64_t, int64_t, double, Bools>());
  if (!grads[0].defined()) return variable_list(num_outputs());
  visit_saved(*this, [&swap](SavedVariable& variable) { swap.before(variable); });
  PackedArgs args;
  if (is_differentiated_again()) {
    Sparse unpacked;
    for (const SavedVariable& operand : operands) unpacked.add(operand.unpack());
    unpacked.pack(args);
    args.pack(options.kind);
    args.pack(options.reduction);
    args.pack(options.ignore_index);
    args.pack(options.number);
  } else {
    args.pack(grad_input.unpack());
    args.pack(type);
    args.pack(options.kind);
  }
  args.pack(wanted());
  variable_list result = (is_differentiated_again() ? again : once).call(*this, grads, args, swap);
  visit_saved(*this, [&swap](SavedVariable& variable) { swap.after(variable); });
  return result;
}

}  // namespace mlp_ext
