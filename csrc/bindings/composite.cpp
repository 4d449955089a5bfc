#include "composite.h"

#include <algorithm>

#include <ATen/TensorOperators.h>
#include <ATen/ops/elu.h>
#include <ATen/ops/elu_backward.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/leaky_relu_backward.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sigmoid_backward.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/softplus.h>
#include <ATen/ops/softplus_backward.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/tanh_backward.h>
#include <ATen/ops/threshold_backward.h>

namespace mlp_ext {

using at::Tensor;

Activation checked_activation(int64_t code) {
  TORCH_CHECK_VALUE(code >= 0 && code < kActivationCount, "mlp_ext: activation code ", code,
                    " is not in [0, ", kActivationCount, ")");
  return static_cast<Activation>(code);
}

void check_stack_lists(at::TensorList weights, const OptionalTensors& biases,
                       at::IntArrayRef activations) {
  TORCH_CHECK_VALUE(
      weights.size() == biases.size() && weights.size() == activations.size() && !weights.empty(),
      "mlp_ext: expected as many weights as biases and activations, and at least one; got ",
      weights.size(), " weights, ", biases.size(), " biases, ", activations.size(), " activations");
  for (const int64_t code : activations) checked_activation(code);
}

Tensor activation_composite(const Tensor& x, Activation activation) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::relu:
      return at::relu(x);
    case Activation::gelu:
      return at::gelu(x, "none");
    case Activation::gelu_tanh:
      return at::gelu(x, "tanh");
    case Activation::silu:
      return at::silu(x);
    case Activation::tanh:
      return at::tanh(x);
    case Activation::sigmoid:
      return at::sigmoid(x);
    case Activation::leaky_relu:
      return at::leaky_relu(x);
    case Activation::elu:
      return at::elu(x);
    case Activation::softplus:
      return at::softplus(x);
  }
  TORCH_INTERNAL_ASSERT(false, "unknown activation code ", static_cast<int>(activation));
}

namespace {

// dy * f'(x), with y = f(x) at hand; every operator here has a derivative of its own.
Tensor activation_backward_composite(const Tensor& dy, const Tensor& x, const Tensor& y,
                                     Activation activation) {
  switch (activation) {
    case Activation::none:
      return dy;
    case Activation::relu:
      return at::threshold_backward(dy, y, 0);
    case Activation::gelu:
      return at::gelu_backward(dy, x, "none");
    case Activation::gelu_tanh:
      return at::gelu_backward(dy, x, "tanh");
    case Activation::silu: {  // at::silu_backward has no derivative
      const Tensor s = at::sigmoid(x);
      return dy * (s * (1 + x * (1 - s)));
    }
    case Activation::tanh:
      return at::tanh_backward(dy, y);
    case Activation::sigmoid:
      return at::sigmoid_backward(dy, y);
    case Activation::leaky_relu:
      return at::leaky_relu_backward(dy, x, 0.01, /*self_is_result=*/false);
    case Activation::elu:
      return at::elu_backward(dy, 1, 1, 1, /*is_result=*/false, x);
    case Activation::softplus:
      return at::softplus_backward(dy, x, 1, 20);
  }
  TORCH_INTERNAL_ASSERT(false, "unknown activation code ", static_cast<int>(activation));
}

}  // namespace

Tensor mlp_composite(const Tensor& input, at::TensorList weights, const OptionalTensors& biases,
                     at::IntArrayRef activations) {
  check_stack_lists(weights, biases, activations);
  Tensor x = input;
  for (size_t l = 0; l < weights.size(); ++l) {
    x = activation_composite(at::linear(x, weights[l], biases.get(l)),
                             static_cast<Activation>(activations[l]));
  }
  return x;
}

std::vector<Tensor> mlp_backward_composite(const Tensor& grad, const Tensor& input,
                                           at::TensorList weights,
                                           const std::vector<Tensor>& biases,
                                           at::IntArrayRef activations,
                                           const std::vector<bool>& needs) {
  const size_t layers = weights.size();
  std::vector<Tensor> x(layers), z(layers), y(layers);
  Tensor h = input.reshape_symint({-1, input.sym_size(-1)});
  for (size_t l = 0; l < layers; ++l) {
    x[l] = h;
    z[l] = biases[l].defined() ? at::linear(h, weights[l], biases[l]) : at::linear(h, weights[l]);
    h = y[l] = activation_composite(z[l], static_cast<Activation>(activations[l]));
  }
  std::vector<Tensor> grads(1 + 2 * layers);
  Tensor dy = grad.reshape_symint({-1, grad.sym_size(-1)});
  for (size_t l = layers; l-- > 0;) {
    const Tensor dz =
        activation_backward_composite(dy, z[l], y[l], static_cast<Activation>(activations[l]));
    if (needs[1 + l]) grads[1 + l] = dz.t().matmul(x[l]);
    if (needs[1 + layers + l]) grads[1 + layers + l] = dz.sum(0);
    if (l > 0 || needs[0]) dy = dz.matmul(weights[l]);
  }
  if (needs[0]) grads[0] = dy.reshape_symint(input.sym_sizes());
  return grads;
}

bool is_linear_below_output(at::IntArrayRef activations) {
  const auto is_none = [](int64_t code) { return code == static_cast<int>(Activation::none); };
  return std::all_of(activations.begin(), activations.end() - 1, is_none) &&
         !saves_input(static_cast<Activation>(activations.back()));
}

std::vector<Tensor> frozen_backward_composite(const Tensor& grad, const Tensor& output,
                                              c10::SymIntArrayRef input_sizes,
                                              at::TensorList weights, at::IntArrayRef activations,
                                              const std::vector<bool>& needs) {
  const size_t layers = weights.size();
  std::vector<Tensor> grads(1 + 2 * layers);
  const Tensor dz = activation_backward_composite(grad, Tensor(), output,
                                                  static_cast<Activation>(activations.back()));
  Tensor dy = dz.reshape_symint({-1, dz.sym_size(-1)});
  size_t lowest = 0;
  while (lowest < layers && !needs[0] && !needs[1 + layers + lowest]) ++lowest;
  for (size_t l = layers; l-- > lowest;) {
    if (needs[1 + layers + l]) grads[1 + layers + l] = dy.sum(0);
    if (l > lowest || needs[0]) dy = dy.matmul(weights[l]);
  }
  if (needs[0]) grads[0] = dy.reshape_symint(input_sizes);
  return grads;
}

}  // namespace mlp_ext
