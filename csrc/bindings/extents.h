// Whether tensors share memory, in which case two threads must not write to them at a time.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <algorithm>

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

}  // namespace mlp_ext
