// Tensors as the stack's kernels read them: rows of unit stride, in the type that is computed in.
#pragma once

#include <ATen/core/Tensor.h>

#include <type_traits>
#include <vector>

namespace mlp_ext {

// No copy for anything whose last dimension is contiguous, expanded rows included.
inline at::Tensor with_unit_stride(const at::Tensor& t) {
  return t.stride(-1) == 1 || t.size(-1) == 1 ? t : t.contiguous();
}

// (..., K) as (M, K).
inline at::Tensor as_rows(const at::Tensor& t) {
  if (t.dim() == 2) return with_unit_stride(t);
  return with_unit_stride(t.reshape({-1, t.size(-1)}));
}

// The dtype of a kernel's float or double.
template <class T>
constexpr at::ScalarType kType = std::is_same_v<T, double> ? at::kDouble : at::kFloat;

// T may be our BFloat16, which is torch's by another name.
template <class T>
const T* data_of(const at::Tensor& t) {
  return t.defined() ? static_cast<const T*>(t.const_data_ptr()) : nullptr;
}
template <class T>
T* mutable_data_of(const at::Tensor& t) {
  return t.defined() ? static_cast<T*>(t.mutable_data_ptr()) : nullptr;
}

inline int64_t row_stride(const at::Tensor& t) { return t.size(0) == 1 ? t.size(1) : t.stride(0); }

// The shape of a stack's output: the input's, with another last dimension.
inline std::vector<int64_t> output_sizes(const at::Tensor& input, const at::Tensor& last_weight) {
  std::vector<int64_t> sizes = input.sizes().vec();
  sizes.back() = last_weight.size(0);
  return sizes;
}

}  // namespace mlp_ext
