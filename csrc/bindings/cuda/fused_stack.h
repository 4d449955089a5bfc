// Whole stacks of narrow layers in one launch, where csrc/cuda/fused_mlp/fused_mlp.h takes them: on
// tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "../../common/activation_kind.h"
#include "device.h"

namespace mlp_ext {

// One layer of a stack; undefined tensors: none, or not wanted. All rows have unit stride; what is
// written is dense.
struct StackLayer {
  at::Tensor weight, bias;
  Activation activation = Activation::none;
  at::Tensor y, z;      // forward's output, and what the activation is applied to
  at::Tensor x, saved;  // backward's: the layer's input, and what the derivative reads
  at::Tensor dw, db;
};

// Of all layers of a call, from the input up.
bool fused_forward_fits(const at::Tensor& x, const std::vector<StackLayer>& layers,
                        const DeviceScope& device);
void fused_forward(const at::Tensor& x, const std::vector<StackLayer>& layers,
                   const DeviceScope& device);

// Of the layers from the lowest that has a gradient to give. dx: undefined if not wanted.
bool fused_backward_fits(const at::Tensor& dy, const std::vector<StackLayer>& layers,
                         const DeviceScope& device);
void fused_backward(const at::Tensor& dy, const std::vector<StackLayer>& layers,
                    const at::Tensor& dx, const DeviceScope& device);

}  // namespace mlp_ext
