#include "recycling.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <new>
#include <utility>

namespace mlp_ext {

namespace {

constexpr size_t kLeastBytes = 64 * 1024;               // malloc does well below
constexpr size_t kMostCachedBytes = size_t{256} << 20;  // beyond, the longest unused are unmapped
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

// Memory straight from the system, so that what is given back is given back.
struct Block {
  void* data;
  SizeClass size;
  void* mapping;
  size_t mapped_bytes;
  Block *older = nullptr, *newer = nullptr;  // in a Shelf

  // Null if there is none.
  static Block* map(SizeClass size) {
    // Whole huge pages where there is at least one: C's rows, a page apart, outgrow the TLB.
    const bool huge = size.bytes >= kHugePage;
    const size_t slack = huge ? kHugePage : 0;
    void* mapping = mmap(nullptr, size.bytes + slack, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) return nullptr;
    auto place = reinterpret_cast<uintptr_t>(mapping);
    if (huge) place = (place + kHugePage - 1) / kHugePage * kHugePage;
    void* data = reinterpret_cast<void*>(place);
    if (huge) madvise(data, size.bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
    auto* const block = new (std::nothrow) Block{data, size, mapping, size.bytes + slack};
    if (block == nullptr) munmap(mapping, size.bytes + slack);
    return block;
  }
};

// Blocks in the order in which they came, linked in themselves: tensors are freed in deleters,
// which may not throw, least of all when memory is short.
class Shelf {
 public:
  uint64_t last_use = 0;

  bool empty() const { return newest_ == nullptr; }
  void push(Block* block) noexcept {
    block->older = newest_, block->newer = nullptr;
    (newest_ ? newest_->newer : oldest_) = block;
    newest_ = block;
  }
  Block* take_newest() noexcept {
    Block* const block = newest_;
    newest_ = block->older;
    (newest_ ? newest_->newer : oldest_) = nullptr;
    return block;
  }
  Block* take_oldest() noexcept {
    Block* const block = oldest_;
    oldest_ = block->newer;
    (oldest_ ? oldest_->older : newest_) = nullptr;
    return block;
  }
  // Gives all that is in it back to the system.
  void unmap() noexcept {
    while (!empty()) {
      Block* const block = take_newest();
      munmap(block->mapping, block->mapped_bytes);
      delete block;
    }
  }

 private:
  Block *oldest_ = nullptr, *newest_ = nullptr;
};

class Pool {
 public:
  // A block of the class; null if the system has none.
  Block* take(SizeClass size) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      Shelf& shelf = shelves_[size.index];
      shelf.last_use = ++uses_;
      if (!shelf.empty()) {
        cached_ -= size.bytes;
        return shelf.take_newest();
      }
    }
    return Block::map(size);
  }

  void give(Block* block) noexcept {
    Shelf dropped;  // unmapped outside the lock: that takes long
    if (block->size.bytes > kMostCachedBytes) {
      dropped.push(block);
    } else {
      const std::lock_guard<std::mutex> lock(mutex_);
      Shelf& shelf = shelves_[block->size.index];
      shelf.last_use = ++uses_;
      shelf.push(block);
      cached_ += block->size.bytes;
      while (cached_ > kMostCachedBytes) dropped.push(take_coldest());
    }
    dropped.unmap();
  }

  int64_t release() {
    Shelf dropped;
    int64_t bytes = 0;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (Shelf& shelf : shelves_) {
        while (!shelf.empty()) dropped.push(shelf.take_newest());
      }
      bytes = static_cast<int64_t>(std::exchange(cached_, 0));
    }
    dropped.unmap();
    return bytes;
  }

  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  // The coldest block of the class that has been out of use for the longest.
  Block* take_coldest() noexcept {
    Shelf* oldest = nullptr;
    for (Shelf& shelf : shelves_) {
      if (shelf.empty()) continue;
      if (!oldest || shelf.last_use < oldest->last_use) oldest = &shelf;
    }
    Block* block = oldest->take_oldest();
    cached_ -= block->size.bytes;
    return block;
  }

  std::mutex mutex_;
  std::array<Shelf, 256> shelves_;
  size_t cached_ = 0;
  uint64_t uses_ = 0;
};

// Never destroyed: tensors may be freed after static objects are.
Pool& pool() {
  static Pool* const instance = [] {
    static Pool* made = new Pool();
    // A child of fork (a DataLoader's worker) must not find the lock held by a thread that it
    // lacks.
    pthread_atfork([] { made->lock(); }, [] { made->unlock(); }, [] { made->unlock(); });
    return made;
  }();
  return *instance;
}

class Recycling final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const SizeClass size(std::max(bytes, kLeastBytes));
    Block* block = pool().take(size);
    if (block == nullptr) {  // perhaps there is enough once the cache is empty
      pool().release();
      block = pool().take(size);
    }
    TORCH_CHECK_WITH(OutOfMemoryError, block != nullptr,
                     "mlp_ext: can't allocate memory: you tried to allocate ", bytes, " bytes.");
    // First, so that the block is not lost where an observer of memory throws.
    c10::DataPtr data(block->data, block, &free_block, c10::Device(c10::DeviceType::CPU));
    c10::profiledCPUMemoryReporter().New(block->data, bytes);
    return data;
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

 private:
  static void free_block(void* context) {
    Block* block = static_cast<Block*>(context);
    c10::profiledCPUMemoryReporter().Delete(block->data);
    pool().give(block);
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
