// Tensors as the stack's kernels read them: rows of unit stride, in the type that is computed in.
#pragma once

#include <ATen/core/Tensor.h>

#include <type_traits>
#include <vector>

#include "memory.h"

namespace mlp_ext {

// The tensor itself. RuntimeError where its memory was freed: to be asked before anything reads it,
// PyTorch's copies and conversions included, many of which do not look (torch 2.13).
inline const at::Tensor& readable(const at::Tensor& t) {
  TORCH_CHECK(has_its_memory(t), "The tensor of shape ", t.sizes(),
              " has a non-zero number of elements, but its data is not allocated (freed by "
              "resize_(0)?): its storage has ",
              t.storage().nbytes(), " bytes");
  return t;
}

// In `type`, and for contiguous_in contiguous as well; the tensor itself where it is so.
inline at::Tensor converted_to(const at::Tensor& t, at::ScalarType type) {
  return t.scalar_type() == type ? t : readable(t).to(type);
}
inline at::Tensor contiguous_in(const at::Tensor& t, at::ScalarType type) {
  return converted_to(t.is_contiguous() ? t : readable(t).contiguous(), type);
}

// No copy for anything whose last dimension is contiguous, expanded rows included.
inline at::Tensor with_unit_stride(const at::Tensor& t) {
  return t.stride(-1) == 1 || t.size(-1) == 1 ? t : readable(t).contiguous();
}

// (..., K) as (M, K).
inline at::Tensor as_rows(const at::Tensor& t) {
  if (t.dim() == 2) return with_unit_stride(t);
  return with_unit_stride(readable(t).reshape({-1, t.size(-1)}));
}

// The dtype of a kernel's float or double.
template <class T>
constexpr at::ScalarType kType = std::is_same_v<T, double> ? at::kDouble : at::kFloat;

// The only way from a tensor to an address: RuntimeError where the memory was freed, null for an
// undefined tensor. T may be our BFloat16, which is torch's by another name.
template <class T>
const T* data_of(const at::Tensor& t) {
  return t.defined() ? static_cast<const T*>(readable(t).const_data_ptr()) : nullptr;
}
template <class T>
T* mutable_data_of(const at::Tensor& t) {
  return t.defined() ? static_cast<T*>(readable(t).mutable_data_ptr()) : nullptr;
}

inline int64_t row_stride(const at::Tensor& t) { return t.size(0) == 1 ? t.size(1) : t.stride(0); }

// The shape of a stack's output: the input's, with another last dimension.
inline std::vector<int64_t> output_sizes(const at::Tensor& input, const at::Tensor& last_weight) {
  std::vector<int64_t> sizes = input.sizes().vec();
  sizes.back() = last_weight.size(0);
  return sizes;
}

}  // namespace mlp_ext
