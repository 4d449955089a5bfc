#include "workspace.h"

#include <cstdlib>
#include <memory>
#include <new>

namespace mlp_ext {

namespace {

constexpr size_t kAlignment = 64;

struct Free {
  void operator()(void* p) const { std::free(p); }
};

struct Buffer {
  std::unique_ptr<void, Free> data;
  size_t bytes = 0;
};

}  // namespace

void* thread_workspace(Purpose purpose, size_t bytes) {
  thread_local Buffer buffers[2];
  Buffer& buffer = buffers[static_cast<int>(purpose)];
  if (bytes > buffer.bytes) {
    const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    buffer.data.reset(std::aligned_alloc(kAlignment, rounded));
    buffer.bytes = buffer.data ? rounded : 0;
    if (!buffer.data) throw std::bad_alloc();
  }
  return buffer.data.get();
}

}  // namespace mlp_ext
