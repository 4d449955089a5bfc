// Whether a tensor's elements are there at all.
#pragma once

#include <ATen/core/Tensor.h>

namespace mlp_ext {

// False where storage.resize_() has freed or cut the memory that the tensor's sizes, strides and
// offset reach: FSDP and offloading free tensors so, and the address is then null or too short.
// Says nothing, true, of tensors that have no memory of their own: fake, meta, sparse, wrapped and
// zero tensors.
inline bool has_its_memory(const at::Tensor& t) {
  const c10::TensorImpl& impl = *t.unsafeGetTensorImpl();
  const c10::DispatchKeySet none{c10::DispatchKey::Python, c10::DispatchKey::ZeroTensor};
  if (impl.key_set().has_any(none) || !impl.has_storage() || t.is_meta()) return true;
  if (impl.numel() == 0) return true;
  int64_t last = impl.storage_offset();  // the last element's place
  const auto sizes = impl.sizes(), strides = impl.strides();
  for (size_t d = 0; d < sizes.size(); ++d) last += (sizes[d] - 1) * strides[d];
  const c10::Storage& storage = impl.unsafe_storage();
  const auto needed = static_cast<size_t>(last + 1) * impl.itemsize();
  return storage.nbytes() >= needed && storage.data() != nullptr;
}

}  // namespace mlp_ext
