// The ops mlp and _mlp_forward on the CPU: the stack's forward pass by our kernels.
//
// bfloat16 and float16 without products of their own are converted a layer at a time and computed
// in float32, each layer's output being rounded to the storage type as PyTorch does.
#include <deque>

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
  // x: (M, in) in the compute type.
  explicit Forward(const Tensor& x) : x_(x) {}

  void add_layer(const Tensor& weight, const std::optional<Tensor>& bias, Activation activation,
                 bool keep_z) {
    const auto type = x_.scalar_type();
    const Tensor& w = keep(with_unit_stride(weight).to(type));
    const Tensor b = bias ? keep(bias->contiguous().to(type)) : Tensor();
    LayerOutput out;
    out.y = empty_recycled({x_.size(0), w.size(0)}, type);
    if (keep_z) out.z = empty_recycled({x_.size(0), w.size(0)}, type);
    layers_.push_back({w.size(1), w.size(0), data_of<T>(w), row_stride(w), data_of<T>(b),
                       activation, mutable_data_of<T>(out.y), mutable_data_of<T>(out.z)});
    outputs_.push_back(std::move(out));
  }

  std::vector<LayerOutput> run() {
    step::StackForward<T> plan(compute_kernels<T>(), data_of<T>(x_), row_stride(x_), x_.size(0),
                               std::move(layers_));
    run_stack(plan);
    return std::move(outputs_);
  }

 private:
  const Tensor& keep(Tensor t) { return kept_.emplace_back(std::move(t)); }

  Tensor x_;
  std::deque<Tensor> kept_;
  std::vector<step::ForwardLayer<T>> layers_;
  std::vector<LayerOutput> outputs_;
};

template <class T>
std::vector<LayerOutput> all_layers(const Tensor& input, at::TensorList weights,
                                    const OptionalTensors& biases, at::IntArrayRef activations,
                                    bool save) {
  const auto compute = stack_compute_type(input, weights);
  const auto keeps_z = [&](size_t l) {
    return save && saves_input(static_cast<Activation>(activations[l]));
  };
  if (input.scalar_type() == compute) {
    Forward<T> stack(as_rows(input));
    for (size_t l = 0; l < weights.size(); ++l) {
      stack.add_layer(weights[l], biases.get(l), static_cast<Activation>(activations[l]),
                      keeps_z(l));
    }
    return stack.run();
  }
  std::vector<LayerOutput> outputs;
  Tensor x = as_rows(input);
  for (size_t l = 0; l < weights.size(); ++l) {
    Forward<T> layer(x.to(compute));
    layer.add_layer(weights[l], biases.get(l), static_cast<Activation>(activations[l]), keeps_z(l));
    LayerOutput out = std::move(layer.run()[0]);
    out.y = out.y.to(input.scalar_type());
    if (out.z.defined()) out.z = out.z.to(input.scalar_type());
    x = out.y;
    outputs.push_back(std::move(out));
  }
  return outputs;
}

// _mlp_forward's list; with `save` unset, the output alone.
std::vector<Tensor> forward(const Tensor& input, at::TensorList weights,
                            const OptionalTensors& biases, at::IntArrayRef activations, bool save) {
  const auto compute = stack_compute_type(input, weights);
  std::vector<LayerOutput> outputs =
      compute == at::kDouble     ? all_layers<double>(input, weights, biases, activations, save)
      : compute == at::kBFloat16 ? all_layers<BFloat16>(input, weights, biases, activations, save)
                                 : all_layers<float>(input, weights, biases, activations, save);
  std::vector<Tensor> result(1);
  const Tensor& last = outputs.back().y;
  result[0] = input.dim() == 2 ? last : last.view(output_sizes(input, weights.back()));
  if (!save) return result;
  for (size_t l = 0; l < outputs.size(); ++l) {
    if (l + 1 < outputs.size()) result.push_back(outputs[l].y);
    if (outputs[l].z.defined()) result.push_back(outputs[l].z);
  }
  return result;
}

}  // namespace

std::vector<Tensor> mlp_forward_cpu(const Tensor& input, at::TensorList weights,
                                    const OptionalTensors& biases, at::IntArrayRef activations) {
  TORCH_CHECK(stack_has_kernel(input, weights, biases, activations),
              "mlp_ext::_mlp_forward takes canonical stacks only; call mlp_ext::mlp");
  return forward(input, weights, biases, activations, /*save=*/true);
}

Tensor mlp_cpu(const Tensor& input, at::TensorList weights, const OptionalTensors& biases,
               at::IntArrayRef activations) {
  if (!stack_has_kernel(input, weights, biases, activations)) {
    return mlp_composite(input, weights, biases, activations);
  }
  return forward(input, weights, biases, activations, /*save=*/false)[0];
}

}  // namespace mlp_ext
