// The op _mlp_backward on the CPU: the stack's backward pass by our kernels.
//
// bfloat16 and float16 without products of their own are converted and computed in float32, the
// gradients rounded at the end.
#include <deque>

#include "../step/stack_backward.h"
#include "cpu_kernels.h"
#include "eligibility.h"
#include "implementations.h"
#include "recycling.h"
#include "stack_tensors.h"

namespace mlp_ext {

using at::Tensor;

namespace {

// Each layer's output, and what its derivative reads, in _mlp_backward's `saved`.
struct SavedOutputs {
  std::vector<Tensor> output, derivative_at;  // undefined where there is none

  SavedOutputs(at::TensorList saved, at::IntArrayRef activations)
      : output(activations.size()), derivative_at(activations.size()) {
    const size_t layers = activations.size();
    size_t next = 0;
    for (size_t l = 0; l < layers; ++l) {
      const auto activation = static_cast<Activation>(activations[l]);
      if (l + 1 < layers) output[l] = saved[next++];
      if (saves_input(activation)) {
        derivative_at[l] = saved[next++];
      } else if (l + 1 < layers) {
        derivative_at[l] = output[l];
      }
    }
    const auto last = static_cast<Activation>(activations[layers - 1]);
    if (last != Activation::none && !saves_input(last)) derivative_at[layers - 1] = saved[next++];
  }
};

template <class T>
std::vector<Tensor> backward(const cpu::KernelTable& table, at::ScalarType compute,
                             const Tensor& grad, const Tensor& input, at::TensorList weights,
                             at::TensorList saved, at::IntArrayRef activations,
                             at::IntArrayRef wanted) {
  const auto storage = input.scalar_type();
  const size_t layers = weights.size();
  const SavedOutputs kept(saved, activations);
  std::vector<Tensor> grads(1 + 2 * layers);
  c10::SmallVector<bool, 16> needs(grads.size(), false);
  for (const int64_t i : wanted) needs[i] = true;

  // Below the lowest layer with a gradient to give nothing is computed.
  size_t lowest = 0;
  while (lowest < layers && !needs[0] && !needs[1 + lowest] && !needs[1 + layers + lowest]) {
    ++lowest;
  }
  std::deque<Tensor> alive;  // what the plan's pointers point into
  const auto rows_of = [&](const Tensor& t) -> const Tensor& {
    return alive.emplace_back(as_rows(t).to(compute));
  };
  // What forward saved may come back from a user's unpack hook: the kernels trust its shape.
  const auto saved_rows = [&](const Tensor& t, int64_t columns) -> const Tensor& {
    const int64_t rows = input.numel() / input.size(-1);
    TORCH_CHECK(
        has_kernel_type(t) && t.dim() > 0 && t.size(-1) == columns && t.numel() == rows * columns,
        "mlp_ext::_mlp_backward got a saved tensor of shape ", t.sizes(), "; expected ", rows,
        " rows of ", columns);
    return rows_of(t);
  };
  const auto gradient = [&](size_t i, at::IntArrayRef sizes) {
    if (!needs[i]) return static_cast<T*>(nullptr);
    grads[i] = empty_recycled(sizes, compute);
    return mutable_data_of<T>(grads[i]);
  };
  const Tensor& dy = rows_of(grad);
  const int64_t rows = dy.size(0);
  std::vector<step::BackwardLayer<T>> plan_layers;
  for (size_t l = lowest; l < layers; ++l) {
    step::BackwardLayer<T> layer{};
    layer.out = weights[l].size(0), layer.in = weights[l].size(1);
    layer.activation = static_cast<Activation>(activations[l]);
    if (l > lowest || (l == 0 && needs[0])) {
      const Tensor& weight = rows_of(weights[l]);
      layer.weight = data_of<T>(weight), layer.ld_weight = row_stride(weight);
    }
    if (needs[1 + l]) {
      const Tensor& x = l > 0 ? saved_rows(kept.output[l - 1], layer.in) : rows_of(input);
      layer.x = data_of<T>(x), layer.ld_x = row_stride(x);
    }
    if (layer.activation != Activation::none) {
      const Tensor& at = saved_rows(kept.derivative_at[l], layer.out);
      layer.saved = data_of<T>(at), layer.ld_saved = row_stride(at);
    }
    if (l + 1 < layers || layer.activation != Activation::none) {
      const Tensor& dz = alive.emplace_back(empty_recycled({rows, layer.out}, compute));
      layer.dz = mutable_data_of<T>(dz);
    }
    layer.dw = gradient(1 + l, weights[l].sizes());
    layer.db = gradient(1 + layers + l, {layer.out});
    plan_layers.push_back(layer);
  }
  if (!plan_layers.empty()) {
    T* const dx = gradient(0, {rows, input.size(-1)});
    step::StackBackward<T> plan(compute_kernels<T>(table), data_of<T>(dy), row_stride(dy), rows,
                                std::move(plan_layers), dx);
    run_plan(plan);
  }
  if (needs[0]) grads[0] = grads[0].view(input.sizes());

  std::vector<Tensor> result;
  for (const int64_t i : wanted) result.push_back(grads[i].to(storage));
  return result;
}

// The op can be called by hand: what the kernels would read beyond its bounds is refused.
void check_backward_arguments(const Tensor& grad, const Tensor& input, at::TensorList weights,
                              at::TensorList saved, at::IntArrayRef activations) {
  OptionalTensors no_biases;
  for (size_t l = 0; l < weights.size(); ++l) no_biases.push_back(std::nullopt);
  TORCH_CHECK(stack_fits_kernels(input, weights, no_biases, activations) &&
                  grad.scalar_type() == input.scalar_type() && grad.device().is_cpu() &&
                  grad.sizes() == at::IntArrayRef(output_sizes(input, weights.back())),
              "mlp_ext::_mlp_backward got a gradient of shape ", grad.sizes(),
              " that does not belong to the stack of an input of shape ", input.sizes());
  size_t expected = weights.size() - 1;
  for (const int64_t code : activations) expected += saves_input(static_cast<Activation>(code));
  const auto last = static_cast<Activation>(activations.back());
  expected += last != Activation::none && !saves_input(last);
  TORCH_CHECK(saved.size() == expected, "mlp_ext::_mlp_backward expected ", expected,
              " saved tensors, got ", saved.size());
}

}  // namespace

std::vector<Tensor> mlp_backward_cpu(const Tensor& grad, const Tensor& input,
                                     at::TensorList weights, at::TensorList saved,
                                     at::IntArrayRef activations, at::IntArrayRef wanted) {
  check_backward_arguments(grad, input, weights, saved, activations);
  for (const int64_t i : wanted) {
    TORCH_CHECK_INDEX(i >= 0 && i < int64_t(1 + 2 * weights.size()),
                      "mlp_ext::_mlp_backward: no gradient has index ", i);
  }
  const cpu::KernelTable& table = cpu::kernels();
  const auto compute = stack_compute_type(table, input, weights);
  switch (compute) {
    case at::kDouble:
      return backward<double>(table, compute, grad, input, weights, saved, activations, wanted);
    case at::kBFloat16:
      return backward<BFloat16>(table, compute, grad, input, weights, saved, activations, wanted);
    default:
      return backward<float>(table, compute, grad, input, weights, saved, activations, wanted);
  }
}

}  // namespace mlp_ext
