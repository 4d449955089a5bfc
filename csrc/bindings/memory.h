// Whether a tensor still has the memory that its sizes speak of.
#pragma once

#include <ATen/core/Tensor.h>

namespace mlp_ext {

// False after untyped_storage().resize_() to less than what the sizes and strides reach: a tensor
// keeps its shape then, and PyTorch's own operators may or may not notice. Not for fake or meta
// tensors, which have no memory.
inline bool has_its_memory(const at::Tensor& t) {
  const int64_t n = t.numel();
  if (n == 0) return true;
  int64_t last = n - 1;
  if (!t.is_contiguous()) {
    last = 0;
    for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  }
  const c10::Storage& storage = t.storage();
  const auto bytes = static_cast<size_t>(t.storage_offset() + last + 1) * t.element_size();
  return storage.data() != nullptr && bytes <= storage.nbytes();
}

}  // namespace mlp_ext
