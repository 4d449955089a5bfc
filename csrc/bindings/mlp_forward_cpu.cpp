// The ops mlp and _mlp_forward on the CPU: the stack's forward pass by our kernels.
//
// bfloat16 and float16 without products of their own are converted a layer at a time and computed
// in float32, each layer's output being rounded to the storage type as PyTorch does.
#include <algorithm>
#include <deque>

#include "../step/stack_forward.h"
#include "composite.h"
#include "cpu_kernels.h"
#include "eligibility.h"
#include "implementations.h"
#include "recycling.h"
#include "stack_tensors.h"

namespace mlp_ext {

using at::Tensor;

namespace {

struct LayerOutput {
  Tensor y, z;  // z: the pre-activation, where backward needs it
};

// The layers of a plan, with the tensors that it reads and writes.
template <class T>
class Forward {
 public:
  // x: (M, in) in the compute type. hidden_width: 0 to give each layer an output of its own;
  // otherwise the hidden layers, none of which is wider, take turns with two buffers.
  Forward(const cpu::KernelTable& table, const Tensor& x, int64_t hidden_width)
      : kernels_(compute_kernels<T>(table)), x_(x), hidden_width_(hidden_width) {}

  void add_layer(const Tensor& weight, const std::optional<Tensor>& bias, Activation activation,
                 bool keep_z, bool hidden) {
    const auto type = x_.scalar_type();
    const Tensor& w = keep(converted_to(with_unit_stride(weight), type));
    const Tensor b = bias ? keep(contiguous_in(*bias, type)) : Tensor();
    const int64_t rows = x_.size(0), width = w.size(0);
    LayerOutput out;
    step::ForwardLayer<T> layer{};
    layer.in = w.size(1), layer.out = width;
    layer.weight = data_of<T>(w), layer.ld_weight = row_stride(w);
    layer.bias = data_of<T>(b);
    layer.activation = activation;
    if (hidden && hidden_width_ > 0) {
      Tensor& buffer = buffers_[layers_.size() % 2];
      if (!buffer.defined()) buffer = empty_recycled({rows, hidden_width_}, type);
      layer.y = mutable_data_of<T>(buffer), layer.ld_y = hidden_width_;
    } else {
      out.y = empty_recycled({rows, width}, type);
      layer.y = mutable_data_of<T>(out.y), layer.ld_y = width;
    }
    if (keep_z) out.z = empty_recycled({rows, width}, type);
    layer.z = mutable_data_of<T>(out.z);
    layers_.push_back(layer);
    outputs_.push_back(std::move(out));
  }

  std::vector<LayerOutput> run() {
    step::StackForward<T> plan(kernels_, data_of<T>(x_), row_stride(x_), x_.size(0),
                               std::move(layers_));
    run_plan(plan);
    return std::move(outputs_);
  }

 private:
  const Tensor& keep(Tensor t) { return kept_.emplace_back(std::move(t)); }

  const cpu::ComputeKernels<T>& kernels_;
  Tensor x_;
  int64_t hidden_width_;
  std::deque<Tensor> kept_;
  Tensor buffers_[2];
  std::vector<step::ForwardLayer<T>> layers_;
  std::vector<LayerOutput> outputs_;
};

struct Stack {
  const Tensor& input;
  at::TensorList weights;
  const OptionalTensors& biases;
  at::IntArrayRef activations;
  bool save;

  bool keeps_z(size_t l) const {
    return save && saves_input(static_cast<Activation>(activations[l]));
  }
  int64_t hidden_width() const {
    int64_t widest = 0;
    for (size_t l = 0; l + 1 < weights.size(); ++l) {
      widest = std::max(widest, weights[l].size(0));
    }
    return widest;
  }
  template <class T>
  void add_layer(Forward<T>& plan, size_t l) const {
    plan.add_layer(weights[l], biases.get(l), static_cast<Activation>(activations[l]), keeps_z(l),
                   /*hidden=*/l + 1 < weights.size());
  }
};

template <class T>
std::vector<LayerOutput> all_layers(const cpu::KernelTable& table, const Stack& stack,
                                    at::ScalarType compute) {
  const auto storage = stack.input.scalar_type();
  const size_t layers = stack.weights.size();
  if (storage == compute) {
    Forward<T> plan(table, as_rows(stack.input), stack.save ? 0 : stack.hidden_width());
    for (size_t l = 0; l < layers; ++l) stack.add_layer(plan, l);
    return plan.run();
  }
  std::vector<LayerOutput> outputs;
  Tensor x = as_rows(stack.input);
  for (size_t l = 0; l < layers; ++l) {
    Forward<T> plan(table, converted_to(x, compute), 0);
    stack.add_layer(plan, l);
    LayerOutput out = std::move(plan.run()[0]);
    x = out.y = out.y.to(storage);
    if (out.z.defined()) out.z = out.z.to(storage);
    if (!stack.save && !outputs.empty()) outputs.back().y.reset();
    outputs.push_back(std::move(out));
  }
  return outputs;
}

// _mlp_forward's list; with `save` unset, the output alone.
std::vector<Tensor> forward(const Stack& stack) {
  const cpu::KernelTable& table = cpu::kernels();
  const auto compute = stack_compute_type(table, stack.input, stack.weights);
  std::vector<LayerOutput> outputs =
      compute == at::kDouble     ? all_layers<double>(table, stack, compute)
      : compute == at::kBFloat16 ? all_layers<BFloat16>(table, stack, compute)
                                 : all_layers<float>(table, stack, compute);
  std::vector<Tensor> result(1);
  const Tensor& last = outputs.back().y;
  result[0] =
      stack.input.dim() == 2 ? last : last.view(output_sizes(stack.input, stack.weights.back()));
  if (!stack.save) return result;
  for (size_t l = 0; l < outputs.size(); ++l) {
    if (l + 1 < outputs.size()) result.push_back(outputs[l].y);
    if (outputs[l].z.defined()) result.push_back(outputs[l].z);
  }
  return result;
}

}  // namespace

std::vector<Tensor> mlp_forward_cpu(const Tensor& input, at::TensorList weights,
                                    const OptionalTensors& biases, at::IntArrayRef activations) {
  TORCH_CHECK(stack_fits_kernels(input, weights, biases, activations),
              "mlp_ext::_mlp_forward takes canonical stacks only; call mlp_ext::mlp");
  return forward({input, weights, biases, activations, /*save=*/true});
}

Tensor mlp_cpu(const Tensor& input, at::TensorList weights, const OptionalTensors& biases,
               at::IntArrayRef activations) {
  if (!stack_has_kernel(input, weights, biases, activations)) {
    return mlp_composite(input, weights, biases, activations);
  }
  return forward({input, weights, biases, activations, /*save=*/false})[0];
}

}  // namespace mlp_ext
