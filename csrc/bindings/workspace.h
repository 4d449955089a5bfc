// Scratch buffers a thread: grown when a larger one is asked for, kept for the thread's life. For
// packing a few MiB, bounded by the block sizes; for a team (the caller's alone) the partial sums
// of a stack that is cut by rows, at most half a MiB of float32 a thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mlp_ext {

// A thread has one buffer for each purpose, so that it can hold both.
enum class Purpose { kPacking, kTeam };

// 64-byte aligned, contents undefined; valid until this thread asks for this purpose again.
void* thread_workspace(Purpose purpose, size_t bytes);

template <class T>
T* thread_workspace_of(Purpose purpose, int64_t elements) {
  return static_cast<T*>(thread_workspace(purpose, static_cast<size_t>(elements) * sizeof(T)));
}

}  // namespace mlp_ext
