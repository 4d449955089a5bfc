// The op _mlp_backward on CUDA: the stack's backward pass by our kernels. For each layer from the
// top: dW = dZ^T X, and dZ of the layer below = (dZ W) f'(saved) with its column sums, which are
// that layer's bias gradient, in one product.
#include <ATen/ops/empty.h>

#include "../eligibility.h"
#include "../saved_outputs.h"
#include "../stack_tensors.h"
#include "implementations_cuda.h"
#include "layer_products.h"

namespace mlp_ext {

using at::Tensor;

std::vector<Tensor> mlp_backward_cuda(const Tensor& grad, const Tensor& input,
                                      at::TensorList weights, at::TensorList saved,
                                      at::IntArrayRef activations, at::IntArrayRef wanted) {
  check_backward_arguments(grad, input, weights, saved, activations, wanted);
  const size_t layers = weights.size();
  const SavedOutputs kept(saved, activations);
  const Needs needs = needs_of(wanted, layers);
  const size_t lowest = lowest_layer(needs, layers);
  std::vector<Tensor> grads(1 + 2 * layers);
  const auto empty = [&](at::IntArrayRef sizes) { return at::empty(sizes, input.options()); };
  const auto bias_gradient = [&](size_t l) -> Tensor& {
    Tensor& db = grads[1 + layers + l];
    if (needs[1 + layers + l]) db = empty({weights[l].size(0)});
    return db;
  };
  // What the derivative of layer l reads.
  const auto derivative_at = [&](size_t l) {
    if (static_cast<Activation>(activations[l]) == Activation::none) return Tensor();
    check_saved(kept.derivative_at[l], input, weights[l].size(0));
    return as_rows(kept.derivative_at[l]);
  };

  const DeviceScope device(input);
  const LayerProducts products(device);
  Tensor dz = as_rows(grad);
  const int64_t rows = dz.size(0);
  if (lowest < layers) {
    const auto top = static_cast<Activation>(activations[layers - 1]);
    const Tensor& db = bias_gradient(layers - 1);
    if (top != Activation::none) {
      const Tensor dy = dz;
      dz = empty(dy.sizes());
      products.activation_gradient(dy, top, derivative_at(layers - 1), dz, db);
    } else if (db.defined()) {
      products.activation_gradient(dz, top, Tensor(), Tensor(), db);
    }
  }
  for (size_t l = layers; l-- > lowest;) {
    const int64_t in = weights[l].size(1);
    if (needs[1 + l]) {
      if (l > 0) check_saved(kept.output[l - 1], input, in);
      const Tensor x = as_rows(l > 0 ? kept.output[l - 1] : input);
      grads[1 + l] = empty(weights[l].sizes());
      products.weight_gradient(dz, x, grads[1 + l]);
    }
    const bool passes_down = l > lowest || (l == 0 && needs[0]);
    if (!passes_down) break;
    const Tensor dx = empty({rows, in});
    const Tensor weight = with_unit_stride(weights[l]);
    if (l == 0) {
      products.input_gradient(dz, weight, Activation::none, Tensor(), dx, Tensor());
      grads[0] = dx.view(input.sizes());
    } else {
      products.input_gradient(dz, weight, static_cast<Activation>(activations[l - 1]),
                              derivative_at(l - 1), dx, bias_gradient(l - 1));
    }
    dz = dx;
  }

  std::vector<Tensor> result;
  for (const int64_t i : wanted) result.push_back(grads[i]);
  return result;
}

}  // namespace mlp_ext
