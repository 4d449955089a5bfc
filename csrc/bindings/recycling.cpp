#include "recycling.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>

#include <array>
#include <cstdlib>
#include <mutex>
#include <vector>

namespace mlp_ext {

namespace {

constexpr size_t kLeastBytes = 64 * 1024;               // malloc does well below
constexpr size_t kMostCachedBytes = size_t{256} << 20;  // beyond, the longest unused are freed
constexpr size_t kHeader = 64;                          // keeps the data on a cache line
constexpr size_t kHugePage = size_t{2} << 20;

// Sizes are rounded up to one of four between two powers of two.
struct SizeClass {
  size_t index, bytes;

  explicit SizeClass(size_t wanted) {
    const int power = 63 - __builtin_clzll(wanted);
    const size_t step = size_t{1} << (power - 2);
    bytes = (wanted + step - 1) / step * step;
    const int top = 63 - __builtin_clzll(bytes);
    index = 4 * top + ((bytes >> (top - 2)) & 3);
  }
};

class Pool {
 public:
  // A block of the class; null if the system has none.
  void* take(SizeClass size) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      Shelf& shelf = shelves_[size.index];
      shelf.last_use = ++uses_;
      if (!shelf.blocks.empty()) {
        void* block = shelf.blocks.back();
        shelf.blocks.pop_back();
        cached_ -= size.bytes;
        return block;
      }
    }
    // Whole huge pages where there is at least one: C's rows, a page apart, outgrow the TLB.
    const size_t alignment = size.bytes >= kHugePage ? kHugePage : kHeader;
    void* block = nullptr;
    if (posix_memalign(&block, alignment, size.bytes) != 0) return nullptr;
    if (alignment == kHugePage) madvise(block, size.bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
    return block;
  }

  void give(void* block, SizeClass size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Shelf& shelf = shelves_[size.index];
    shelf.last_use = ++uses_;
    shelf.blocks.push_back(block);
    shelf.bytes = size.bytes;
    cached_ += size.bytes;
    while (cached_ > kMostCachedBytes) drop_oldest();
  }

  int64_t release() {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (Shelf& shelf : shelves_) {
      for (void* block : shelf.blocks) std::free(block);
      shelf.blocks.clear();
    }
    return static_cast<int64_t>(std::exchange(cached_, 0));
  }

 private:
  struct Shelf {  // of one class
    std::vector<void*> blocks;
    size_t bytes = 0;
    uint64_t last_use = 0;
  };

  // Frees a block of the class that has been out of use for the longest.
  void drop_oldest() {
    Shelf* oldest = nullptr;
    for (Shelf& shelf : shelves_) {
      if (shelf.blocks.empty()) continue;
      if (!oldest || shelf.last_use < oldest->last_use) oldest = &shelf;
    }
    std::free(oldest->blocks.back());
    oldest->blocks.pop_back();
    cached_ -= oldest->bytes;
  }

  std::mutex mutex_;
  std::array<Shelf, 256> shelves_;
  size_t cached_ = 0;
  uint64_t uses_ = 0;
};

// Never destroyed: tensors may be freed after static objects are.
Pool& pool() {
  static Pool* const instance = new Pool();
  return *instance;
}

class Recycling final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const SizeClass size(std::max(bytes, kLeastBytes) + kHeader);
    void* block = pool().take(size);
    if (block == nullptr) {  // perhaps there is enough once the cache is empty
      pool().release();
      block = pool().take(size);
    }
    TORCH_CHECK_WITH(OutOfMemoryError, block != nullptr,
                     "mlp_ext: can't allocate memory: you tried "
                     "to allocate ",
                     bytes, " bytes.");
    *static_cast<size_t*>(block) = size.bytes;
    void* data = static_cast<char*>(block) + kHeader;
    c10::profiledCPUMemoryReporter().New(data, bytes);
    return {data, data, &free_data, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_data; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

 private:
  static void free_data(void* data) {
    if (data == nullptr) return;
    c10::profiledCPUMemoryReporter().Delete(data);
    void* block = static_cast<char*>(data) - kHeader;
    pool().give(block, SizeClass(*static_cast<size_t*>(block)));
  }
};

}  // namespace

at::Tensor empty_recycled(at::IntArrayRef sizes, at::ScalarType type) {
  size_t bytes = c10::elementSize(type);
  for (const int64_t size : sizes) bytes *= static_cast<size_t>(size);
  if (bytes < kLeastBytes) {
    return at::detail::empty_cpu(sizes, at::TensorOptions().dtype(type));
  }
  static Recycling* const allocator = new Recycling();
  return at::detail::empty_generic(sizes, allocator, c10::DispatchKeySet(c10::DispatchKey::CPU),
                                   type, std::nullopt);
}

int64_t release_recycled() { return pool().release(); }

}  // namespace mlp_ext
