// Class indices as targets of a loss.
#pragma once

#include <ATen/core/Tensor.h>

namespace mlp_ext {

// The sum of the weights of all targets that count; throws IndexError for one out of range, before
// anything is written. `target`: contiguous int64; `weight`: one a class, or null.
template <class T>
double total_target_weight(const at::Tensor& target, const T* weight, int64_t classes,
                           int64_t ignore_index) {
  const int64_t* index = target.const_data_ptr<int64_t>();
  double total = 0;
  for (int64_t i = 0, n = target.numel(); i < n; ++i) {
    if (index[i] == ignore_index) continue;
    TORCH_CHECK_INDEX(index[i] >= 0 && index[i] < classes, "Target ", index[i],
                      " is out of bounds: expected a class index in [0, ", classes, "), or ",
                      ignore_index, " (ignore_index); found at position ", i);
    total += weight ? double(weight[index[i]]) : 1.0;
  }
  return total;
}

template <class T>
double sum_of(const at::Tensor& weight) {
  const T* w = weight.const_data_ptr<T>();
  double sum = 0;
  for (int64_t c = 0; c < weight.numel(); ++c) sum += double(w[c]);
  return sum;
}

}  // namespace mlp_ext
