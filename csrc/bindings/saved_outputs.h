// What the op _mlp_backward is given, read and checked: the same on every device.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "../common/activation_kind.h"

namespace mlp_ext {

// Each layer's output, and what its derivative reads, in _mlp_backward's `saved`.
struct SavedOutputs {
  std::vector<at::Tensor> output, derivative_at;  // undefined where there is none

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

// Which gradients are wanted: of the input, the L weights, the L biases.
using Needs = c10::SmallVector<bool, 16>;
Needs needs_of(at::IntArrayRef wanted, size_t layers);

// Below the lowest layer with a gradient to give nothing is computed; `layers` if there is none.
size_t lowest_layer(const Needs& needs, size_t layers);

// The op can be called by hand: what the kernels would read beyond its bounds is refused.
void check_backward_arguments(const at::Tensor& grad, const at::Tensor& input,
                              at::TensorList weights, at::TensorList saved,
                              at::IntArrayRef activations, at::IntArrayRef wanted);

// What forward saved may come back from a user's unpack hook: the kernels trust its shape.
void check_saved(const at::Tensor& t, const at::Tensor& input, int64_t columns);

}  // namespace mlp_ext
