// The kernel table's entries over threads: on how many of them, and with what workspace.
#pragma once

#include <type_traits>

#include "../cpu/dispatch.h"
#include "../step/stack_backward.h"
#include "../step/stack_forward.h"
#include "../step/train_step.h"

namespace mlp_ext {

// Those of bfloat16 are to be asked for only where kernels().bf16 is not null.
template <class T>
const cpu::ComputeKernels<T>& compute_kernels() {
  if constexpr (std::is_same_v<T, double>) {
    return cpu::kernels().f64;
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    return *cpu::kernels().bf16;
  } else {
    return cpu::kernels().f32;
  }
}

// Runs a plan that was made with compute_kernels<T>().
template <class T>
void run_stack(step::StackForward<T>& plan);
template <class T>
void run_stack(step::StackBackward<T>& plan);

template <class T>
void run_plan(step::TrainStep<T>& plan);

// Returns the sum of the losses of all rows.
template <class T>
double run_cross_entropy(const cpu::CrossEntropyArgs<T>& args, int64_t rows);

}  // namespace mlp_ext
