// What every call of a launcher needs.
#pragma once

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "../../common/half.h"
#include "../../cuda/precision.h"
#include "device.h"

namespace mlp_ext {

// On `like`'s device, from the allocator of the current stream: freed by the host before the
// kernel has run, it is given again to that stream alone.
inline at::Tensor workspace(const at::Tensor& like, size_t bytes) {
  return at::empty({static_cast<int64_t>(bytes)}, like.options().dtype(at::kByte));
}

// For the gradient of a loss of `input`, of the type cuda::LossGradient.
inline at::Tensor empty_gradient(const at::Tensor& input, at::IntArrayRef sizes) {
  const auto type = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return at::empty(sizes, input.options().dtype(type));
}

inline void* pointer_to(const at::Tensor& t) {
  return t.numel() > 0 ? t.mutable_data_ptr() : nullptr;
}

// torch.backends.cuda.matmul (allow_tf32 and fp32_precision) and set_float32_matmul_precision
// decide, as for torch's own products. (allowTF32CuBLAS() throws where fp32_precision was set.)
inline cuda::Precision float32_precision() {
  const at::Float32Precision set =
      at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL);
  return set == at::Float32Precision::TF32 ? cuda::Precision::tf32 : cuda::Precision::full;
}

// function(T{}) for the type in which the kernels know the tensor's elements.
template <class Function>
void with_storage_type(const at::Tensor& t, Function function) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return function(float{});
    case at::kDouble:
      return function(double{});
    case at::kBFloat16:
      return function(BFloat16{});
    default:
      return function(Float16{});
  }
}

}  // namespace mlp_ext
