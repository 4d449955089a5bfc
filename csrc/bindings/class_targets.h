// Class indices as targets of a loss.
#pragma once

#include <ATen/core/Tensor.h>

#include "stack_tensors.h"

namespace mlp_ext {

// The sum of the weights of all targets that count; throws IndexError for one out of range, before
// anything is written. `target`: contiguous int64; `weight`: one a class, or null. Each index is
// read once, since other threads may write them meanwhile (by a volatile read: an atomic one keeps
// GCC 12 from keeping the sum in a register). For those that are written after this the kernels
// look again, and make NaN of what is out of range.
template <class T>
double total_target_weight(const at::Tensor& target, const T* weight, int64_t classes,
                           int64_t ignore_index) {
  const volatile int64_t* const indices = data_of<int64_t>(target);
  double total = 0;
  int64_t counted = 0;  // not in double, whose additions wait for one another
  for (int64_t i = 0, n = target.numel(); i < n; ++i) {
    const int64_t index = indices[i];
    if (index == ignore_index) continue;
    TORCH_CHECK_INDEX(static_cast<uint64_t>(index) < static_cast<uint64_t>(classes), "Target ",
                      index, " is out of bounds: expected a class index in [0, ", classes, "), or ",
                      ignore_index, " (ignore_index); found at position ", i);
    ++counted;
    if (weight) total += double(weight[index]);
  }
  return weight ? total : double(counted);
}

template <class T>
double sum_of(const at::Tensor& weight) {
  const T* const w = data_of<T>(weight);
  double sum = 0;
  for (int64_t c = 0; c < weight.numel(); ++c) sum += double(w[c]);
  return sum;
}

}  // namespace mlp_ext
