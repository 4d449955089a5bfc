// The ops mlp and _mlp_forward on CUDA: the stack's forward pass by our kernels.
#include <ATen/ops/empty.h>

#include "../composite.h"
#include "../eligibility.h"
#include "../implementations.h"
#include "../stack_tensors.h"
#include "fused_stack.h"
#include "layer_products.h"

namespace mlp_ext {

using at::Tensor;

namespace {

// _mlp_forward's list; with `save` unset, the output alone.
std::vector<Tensor> forward(const Tensor& input, at::TensorList weights,
                            const OptionalTensors& biases, at::IntArrayRef activations, bool save) {
  const DeviceScope device(input);
  Tensor x = as_rows(input);
  const int64_t rows = x.size(0);
  std::vector<StackLayer> layers(weights.size());
  for (size_t l = 0; l < layers.size(); ++l) {
    StackLayer& layer = layers[l];
    layer.activation = static_cast<Activation>(activations[l]);
    layer.weight = with_unit_stride(weights[l]);
    if (const std::optional<Tensor> bias = biases.get(l)) {
      layer.bias = contiguous_in(*bias, bias->scalar_type());
    }
  }
  const bool fused = fused_forward_fits(x, layers, device);
  std::vector<Tensor> result(1);
  for (size_t l = 0; l < layers.size(); ++l) {
    StackLayer& layer = layers[l];
    const bool last = l + 1 == layers.size();
    const auto empty = [&] { return at::empty({rows, layer.weight.size(0)}, input.options()); };
    // In one launch, what nobody reads stays in registers.
    if (last || save || !fused) layer.y = empty();
    if (save && saves_input(layer.activation)) layer.z = empty();
    if (save && !last) result.push_back(layer.y);
    if (layer.z.defined()) result.push_back(layer.z);
    if (fused) continue;
    LayerProducts(device).forward(x, layer.weight, layer.bias, layer.activation, layer.y, layer.z);
    x = layer.y;
    if (!save && l > 0) layers[l - 1].y.reset();
  }
  if (fused) fused_forward(x, layers, device);
  const Tensor& y = layers.back().y;
  result[0] = input.dim() == 2 ? y : y.view(output_sizes(input, weights.back()));
  return result;
}

}  // namespace

std::vector<Tensor> mlp_forward_cuda(const Tensor& input, at::TensorList weights,
                                     const OptionalTensors& biases, at::IntArrayRef activations) {
  TORCH_CHECK(stack_fits_kernels(input, weights, biases, activations),
              "mlp_ext::_mlp_forward takes canonical stacks only; call mlp_ext::mlp");
  return forward(input, weights, biases, activations, /*save=*/true);
}

Tensor mlp_cuda(const Tensor& input, at::TensorList weights, const OptionalTensors& biases,
                at::IntArrayRef activations) {
  if (!stack_has_kernel(input, weights, biases, activations)) {
    return mlp_composite(input, weights, biases, activations);
  }
  return forward(input, weights, biases, activations, /*save=*/false)[0];
}

}  // namespace mlp_ext
