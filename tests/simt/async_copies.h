// One CUDA thread's cp.async: what is copied arrives at the wait for its group, and is NaN till
// then.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "simt_host.h"

namespace simt {

class AsyncCopies {
 public:
  // `bytes` of `size` are copied, the rest is zeroed.
  void later(void* to, const void* from, size_t size, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(to) % size != 0 ||
        (bytes > 0 && reinterpret_cast<uintptr_t>(from) % size != 0)) {
      die("cp.async on an address that is not aligned to its size");
    }
    std::memset(to, 0xFF, size);
    copies_.push_back({to, from, size, bytes, group_});
  }
  void close_group() { ++group_; }
  void wait(int groups_left) {
    const int landed = group_ - groups_left;
    const auto lands = [landed](const Copy& c) { return c.group < landed; };
    for (const Copy& c : copies_) {
      if (!lands(c)) continue;
      std::memcpy(c.to, c.from, c.bytes);
      std::memset(static_cast<char*>(c.to) + c.bytes, 0, c.size - c.bytes);
    }
    copies_.erase(std::remove_if(copies_.begin(), copies_.end(), lands), copies_.end());
  }
  bool pending() const { return !copies_.empty(); }

 private:
  struct Copy {
    void* to;
    const void* from;
    size_t size, bytes;
    int group;
  };
  std::vector<Copy> copies_;
  int group_ = 0;  // that is being filled
};

}  // namespace simt
