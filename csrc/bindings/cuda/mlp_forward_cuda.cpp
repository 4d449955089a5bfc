// The ops mlp and _mlp_forward on CUDA: the stack's forward pass by our kernels.
#include <ATen/ops/empty.h>

#include "../composite.h"
#include "../eligibility.h"
#include "../stack_tensors.h"
#include "implementations_cuda.h"
#include "layer_products.h"

namespace mlp_ext {

using at::Tensor;

namespace {

// _mlp_forward's list; with `save` unset, the output alone.
std::vector<Tensor> forward(const Tensor& input, at::TensorList weights,
                            const OptionalTensors& biases, at::IntArrayRef activations, bool save) {
  const DeviceScope device(input);
  const LayerProducts products(device);
  std::vector<Tensor> result(1);
  Tensor x = as_rows(input);
  const int64_t rows = x.size(0);
  for (size_t l = 0; l < weights.size(); ++l) {
    const auto activation = static_cast<Activation>(activations[l]);
    const Tensor weight = with_unit_stride(weights[l]);
    const std::optional<Tensor> bias = biases.get(l);
    const Tensor y = at::empty({rows, weight.size(0)}, input.options());
    const Tensor z = save && saves_input(activation) ? at::empty_like(y) : Tensor();
    products.forward(x, weight, bias ? bias->contiguous() : Tensor(), activation, y, z);
    if (save && l + 1 < weights.size()) result.push_back(y);
    if (z.defined()) result.push_back(z);
    x = y;
  }
  result[0] = input.dim() == 2 ? x : x.view(output_sizes(input, weights.back()));
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
