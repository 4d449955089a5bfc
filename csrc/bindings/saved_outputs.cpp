#include "saved_outputs.h"

#include <c10/util/Exception.h>

#include "eligibility.h"
#include "stack_tensors.h"

namespace mlp_ext {

using at::Tensor;

Needs needs_of(at::IntArrayRef wanted, size_t layers) {
  Needs needs(1 + 2 * layers, false);
  for (const int64_t i : wanted) needs[i] = true;
  return needs;
}

size_t lowest_layer(const Needs& needs, size_t layers) {
  size_t lowest = 0;
  while (lowest < layers && !needs[0] && !needs[1 + lowest] && !needs[1 + layers + lowest]) {
    ++lowest;
  }
  return lowest;
}

void check_backward_arguments(const Tensor& grad, const Tensor& input, at::TensorList weights,
                              at::TensorList saved, at::IntArrayRef activations,
                              at::IntArrayRef wanted) {
  OptionalTensors no_biases;
  for (size_t l = 0; l < weights.size(); ++l) no_biases.push_back(std::nullopt);
  TORCH_CHECK(stack_fits_kernels(input, weights, no_biases, activations) &&
                  grad.scalar_type() == input.scalar_type() && grad.device() == input.device() &&
                  grad.sizes() == at::IntArrayRef(output_sizes(input, weights.back())),
              "mlp_ext::_mlp_backward got a gradient of shape ", grad.sizes(),
              " that does not belong to the stack of an input of shape ", input.sizes());
  size_t expected = weights.size() - 1;
  for (const int64_t code : activations) expected += saves_input(static_cast<Activation>(code));
  const auto last = static_cast<Activation>(activations.back());
  expected += last != Activation::none && !saves_input(last);
  TORCH_CHECK(saved.size() == expected, "mlp_ext::_mlp_backward expected ", expected,
              " saved tensors, got ", saved.size());
  for (const int64_t i : wanted) {
    TORCH_CHECK_INDEX(i >= 0 && i < int64_t(1 + 2 * weights.size()),
                      "mlp_ext::_mlp_backward: no gradient has index ", i);
  }
}

void check_saved(const Tensor& t, const Tensor& input, int64_t columns) {
  const int64_t rows = input.numel() / input.size(-1);
  TORCH_CHECK(has_kernel_type(t) && t.device() == input.device() && t.dim() > 0 &&
                  t.size(-1) == columns && t.numel() == rows * columns,
              "mlp_ext::_mlp_backward got a saved tensor of shape ", t.sizes(), " on ", t.device(),
              "; expected ", rows, " rows of ", columns, " on ", input.device());
}

}  // namespace mlp_ext
