// The kernel table's entries over threads: how the work is cut, and on how many of them.
#pragma once

#include <type_traits>

#include "../cpu/dispatch.h"

namespace mlp_ext {

template <class T>
const cpu::ComputeKernels<T>& compute_kernels() {
  if constexpr (std::is_same_v<T, double>) {
    return cpu::kernels().f64;
  } else {
    return cpu::kernels().f32;
  }
}

template <class T>
void run_gemm(const cpu::GemmArgs<T>& args);

template <class T>
void run_activation_backward(const cpu::ActivationBackwardArgs<T>& args, int64_t columns);

// Returns the sum of the losses of all rows.
template <class T>
double run_cross_entropy(const cpu::CrossEntropyArgs<T>& args, int64_t rows);

}  // namespace mlp_ext
