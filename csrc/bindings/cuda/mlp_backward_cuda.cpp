// The op _mlp_backward on CUDA: the stack's backward pass by our kernels, in one launch where they
// take it whole. Otherwise, for each layer from the top: dW = dZ^T X, and dZ of the layer below =
// (dZ W) f'(saved) with its column sums, which are that layer's bias gradient, in one product.
#include <ATen/ops/empty.h>

#include "../eligibility.h"
#include "../implementations.h"
#include "../saved_outputs.h"
#include "../stack_tensors.h"
#include "fused_stack.h"
#include "layer_products.h"

namespace mlp_ext {

using at::Tensor;

namespace {

void by_layers(Tensor dz, const std::vector<StackLayer>& layers, const Tensor& dx,
               const DeviceScope& device) {
  const LayerProducts products(device);
  const StackLayer& top = layers.back();
  if (top.activation != Activation::none) {
    const Tensor dy = dz;
    dz = at::empty(dy.sizes(), dy.options());
    products.activation_gradient(dy, top.activation, top.saved, dz, top.db);
  } else if (top.db.defined() && !top.dw.defined()) {
    products.activation_gradient(dz, Activation::none, Tensor(), Tensor(), top.db);
  }
  for (size_t l = layers.size(); l-- > 0;) {
    const StackLayer& layer = layers[l];
    // Other layers' bias gradients are summed with the derivative that made their dz.
    const bool sums = &layer == &top && top.activation == Activation::none;
    if (layer.dw.defined()) {
      products.weight_gradient(dz, layer.x, layer.dw, sums ? layer.db : Tensor());
    }
    if (l > 0) {
      const StackLayer& below = layers[l - 1];
      const Tensor next = at::empty({dz.size(0), layer.weight.size(1)}, dz.options());
      products.input_gradient(dz, layer.weight, below.activation, below.saved, next, below.db);
      dz = next;
    } else if (dx.defined()) {
      products.input_gradient(dz, layer.weight, Activation::none, Tensor(), dx, Tensor());
    }
  }
}

}  // namespace

std::vector<Tensor> mlp_backward_cuda(const Tensor& grad, const Tensor& input,
                                      at::TensorList weights, at::TensorList saved,
                                      at::IntArrayRef activations, at::IntArrayRef wanted) {
  check_backward_arguments(grad, input, weights, saved, activations, wanted);
  const size_t count = weights.size();
  const SavedOutputs kept(saved, activations);
  const Needs needs = needs_of(wanted, count);
  std::vector<Tensor> grads(1 + 2 * count);
  const auto gradient = [&](size_t i, at::IntArrayRef sizes) {
    if (needs[i]) grads[i] = at::empty(sizes, input.options());
    return grads[i];
  };
  const auto saved_rows = [&](const Tensor& t, int64_t columns) {
    check_saved(t, input, columns);
    return as_rows(t.scalar_type() == input.scalar_type() ? t : t.to(input.scalar_type()));
  };

  const DeviceScope device(input);
  const Tensor dy = as_rows(grad);
  std::vector<StackLayer> layers;
  for (size_t l = lowest_layer(needs, count); l < count; ++l) {
    StackLayer& layer = layers.emplace_back();
    layer.weight = with_unit_stride(weights[l]);
    layer.activation = static_cast<Activation>(activations[l]);
    const int64_t out = weights[l].size(0), in = weights[l].size(1);
    if (layer.activation != Activation::none) layer.saved = saved_rows(kept.derivative_at[l], out);
    if (needs[1 + l]) layer.x = l > 0 ? saved_rows(kept.output[l - 1], in) : as_rows(input);
    layer.dw = gradient(1 + l, {out, in});
    layer.db = gradient(1 + count + l, {out});
  }
  if (!layers.empty()) {
    const Tensor dx = gradient(0, {dy.size(0), input.size(-1)});
    if (fused_backward_fits(dy, layers, device)) {
      fused_backward(dy, layers, dx, device);
    } else {
      by_layers(dy, layers, dx, device);
    }
    if (dx.defined()) grads[0] = dx.view(input.sizes());
  }

  std::vector<Tensor> result;
  for (const int64_t i : wanted) result.push_back(grads[i]);
  return result;
}

}  // namespace mlp_ext
