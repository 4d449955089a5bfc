#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

namespace mlp_ext {

// Of a tensor with the key Python: whether its class is another than the two below.
bool is_foreign_class(const at::Tensor& t);

// True for a Tensor of a class with a __torch_dispatch__ of its own (DTensor, quantized and wrapped
// tensors): it wants PyTorch's operators, and has never heard of ours. False for FakeTensor and
// FunctionalTensor, which stand for an ordinary tensor while a graph is recorded.
inline bool has_own_dispatch(const at::Tensor& t) {
  // Ordinary tensors end at a bit of theirs, without Python.
  return t.unsafeGetTensorImpl()->key_set().has(c10::DispatchKey::Python) && is_foreign_class(t);
}

inline bool any_has_own_dispatch(const at::Tensor& t) { return has_own_dispatch(t); }

inline bool any_has_own_dispatch(const std::optional<at::Tensor>& t) {
  return t && has_own_dispatch(*t);
}

template <typename T>
bool any_has_own_dispatch(const std::vector<T>& tensors) {
  for (const T& t : tensors) {
    if (any_has_own_dispatch(t)) return true;
  }
  return false;
}

// Of tensors, optional tensors and vectors of these.
template <typename First, typename... Rest>
bool any_has_own_dispatch(const First& first, const Rest&... rest) {
  return any_has_own_dispatch(first) || (any_has_own_dispatch(rest) || ...);
}

}  // namespace mlp_ext
