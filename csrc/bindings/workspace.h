// A scratch buffer a thread, for packing: grown when a larger one is asked for, kept for the
// thread's life (a few MiB at most, bounded by the block sizes).
#pragma once

#include <cstddef>
#include <cstdint>

namespace mlp_ext {

// 64-byte aligned, contents undefined; valid until this thread asks again.
void* thread_workspace(size_t bytes);

template <class T>
T* thread_workspace_of(int64_t elements) {
  return static_cast<T*>(thread_workspace(static_cast<size_t>(elements) * sizeof(T)));
}

}  // namespace mlp_ext
