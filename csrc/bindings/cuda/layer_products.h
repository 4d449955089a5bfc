// The three products of a layer on tensors, each with what is fused into it. Ours, or cuBLASLt's
// for float64 and where csrc/cuda/cublaslt expects it to be faster; float64 that it does not have
// is cuBLAS's, through PyTorch, with our elementwise kernels.
//
// Tensors are matrices on one device; one of the strides of each input is 1, and those that are
// written are dense. An undefined tensor is a null pointer of the kernels' arguments.
#pragma once

#include <ATen/core/Tensor.h>

#include "../../common/activation_kind.h"
#include "device.h"

namespace mlp_ext {

class LayerProducts {
 public:
  explicit LayerProducts(const DeviceScope& device) : device_(device) {}

  // y = f(x W^T + b); z, if defined, receives what f is applied to.
  void forward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
               Activation activation, const at::Tensor& y, const at::Tensor& z) const;
  // dx = (dz W) f'(saved), with `sums`, if defined, the column sums of it: with f and `saved` of
  // the layer below these are its dz and its bias gradient.
  void input_gradient(const at::Tensor& dz, const at::Tensor& weight, Activation below,
                      const at::Tensor& saved, const at::Tensor& dx, const at::Tensor& sums) const;
  // dW = dz^T x; `sums`, if defined, the column sums of dz: the layer's bias gradient.
  void weight_gradient(const at::Tensor& dz, const at::Tensor& x, const at::Tensor& dw,
                       const at::Tensor& sums) const;
  // dz = dy f'(saved), sums its column sums; either may be undefined.
  void activation_gradient(const at::Tensor& dy, Activation activation, const at::Tensor& saved,
                           const at::Tensor& dz, const at::Tensor& sums) const;

 private:
  const DeviceScope& device_;
};

}  // namespace mlp_ext
