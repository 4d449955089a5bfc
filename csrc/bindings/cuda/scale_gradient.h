// grad *= factor on CUDA.
#pragma once

#include <ATen/core/Tensor.h>

namespace mlp_ext {

// `gradient`, contiguous and nobody else's, times `factor`, of one element and the same dtype and
// device; in place, and for a factor of 1 without reading it. Does not wait for the device.
void scale_gradient(const at::Tensor& gradient, const at::Tensor& factor);

}  // namespace mlp_ext
