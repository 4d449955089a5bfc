// Tensors of any storage type, and memory for a launch.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "../../common/half.h"

namespace mlp_ext {

// Calls function(T{}) with the kernels' name for the tensor's dtype.
template <class Function>
void with_type_of(const at::Tensor& t, Function function) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return function(float{});
    case at::kDouble:
      return function(double{});
    case at::kBFloat16:
      return function(BFloat16{});
    default:
      return function(Float16{});
  }
}

// Memory for a launch on the current stream. It comes from that stream's allocator: freed by the
// host before the kernels have run, it is given again to that stream alone.
class LaunchMemory {
 public:
  // like: a tensor of the device.
  LaunchMemory(const at::Tensor& like, size_t bytes) {
    if (bytes > 0) {
      memory_ = at::empty({static_cast<int64_t>(bytes)}, like.options().dtype(at::kByte));
    }
  }
  void* data() const { return memory_.defined() ? memory_.mutable_data_ptr() : nullptr; }

 private:
  at::Tensor memory_;
};

}  // namespace mlp_ext
