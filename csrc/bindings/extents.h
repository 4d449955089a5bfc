// Whether tensors share memory, in which case two threads must not write to them at a time.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

namespace mlp_ext {

class Extents {
 public:
  // t: dense.
  void add(const at::Tensor& t) {
    if (t.numel() == 0) return;
    const char* begin = static_cast<const char*>(t.const_data_ptr());
    extents_.push_back({begin, begin + t.nbytes()});
  }

  bool overlap() {
    std::sort(extents_.begin(), extents_.end());
    for (size_t i = 1; i < extents_.size(); ++i) {
      if (extents_[i].begin < extents_[i - 1].end) return true;
    }
    return false;
  }

 private:
  struct Extent {
    const char *begin, *end;
    bool operator<(const Extent& other) const { return begin < other.begin; }
  };
  c10::SmallVector<Extent, 64> extents_;
};

// Addresses at which tensors begin. Finds what is the same memory from its first element on (one
// tensor in two places), and not what lies in the middle of another: without a sort, for the many
// states and counters of a step.
class Begins {
 public:
  // expected: how many add() will be called for, at most.
  explicit Begins(size_t expected) : last_(places_for(expected) - 1) {
    if (last_ < few_.size()) return;
    many_.resize(last_ + 1);
    table_ = many_.data();
  }
  Begins(const Begins&) = delete;  // table_ points into it

  // False if it is there already. Null, of a tensor that is empty or not there, never is.
  bool add(const void* begin) {
    if (begin == nullptr) return true;
    const void*& place = table_[place_of(begin)];
    if (place == begin) return false;
    place = begin;
    return true;
  }
  bool has(const void* begin) const { return begin && table_[place_of(begin)] == begin; }

 private:
  static size_t places_for(size_t expected) {
    size_t places = 64;
    while (places < 2 * expected) places *= 2;
    return places;
  }
  // Where it is, or would be.
  size_t place_of(const void* begin) const {
    size_t place = ((reinterpret_cast<uintptr_t>(begin) >> 4) * 0x9E3779B97F4A7C15u >> 32) & last_;
    while (table_[place] != nullptr && table_[place] != begin) place = (place + 1) & last_;
    return place;
  }

  std::array<const void*, 128> few_{};
  std::vector<const void*> many_;
  size_t last_;
  const void** table_ = few_.data();
};

}  // namespace mlp_ext
