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
#include "saved_outputs.h"
#include "stack_tensors.h"

namespace mlp_ext {

using at::Tensor;

namespace {

template <class T>
std::vector<Tensor> backward(const cpu::KernelTable& table, at::ScalarType compute,
                             const Tensor& grad, const Tensor& input, at::TensorList weights,
                             at::TensorList saved, at::IntArrayRef activations,
                             at::IntArrayRef wanted) {
  const auto storage = input.scalar_type();
  const size_t layers = weights.size();
  const SavedOutputs kept(saved, activations);
  std::vector<Tensor> grads(1 + 2 * layers);
  const Needs needs = needs_of(wanted, layers);

  const size_t lowest = lowest_layer(needs, layers);
  std::deque<Tensor> alive;  // what the plan's pointers point into
  const auto rows_of = [&](const Tensor& t) -> const Tensor& {
    return alive.emplace_back(converted_to(as_rows(t), compute));
  };
  const auto saved_rows = [&](const Tensor& t, int64_t columns) -> const Tensor& {
    check_saved(t, input, columns);
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

}  // namespace

std::vector<Tensor> mlp_backward_cpu(const Tensor& grad, const Tensor& input,
                                     at::TensorList weights, at::TensorList saved,
                                     at::IntArrayRef activations, at::IntArrayRef wanted) {
  check_backward_arguments(grad, input, weights, saved, activations, wanted);
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
