// A run of Linear layers, each with its activation and, between two of them, Dropout.
#pragma once

#include <memory>
#include <optional>
#include <span>

#include "stack_backward.h"
#include "stack_forward.h"
#include "train_layer.h"

namespace mlp_ext::step {

// layers, buffers: of the run. `dy`: the gradient of what the run gives. `dx`: receives that of its
// input; null if none below wants it.
template <class T>
std::unique_ptr<Segment<T>> make_stack_segment(const cpu::ComputeKernels<T>& kernels,
                                               std::span<const TrainLayer<T>> layers,
                                               std::span<const LayerBuffers<T>> buffers,
                                               int64_t rows, const T* dy, T* dx);

}  // namespace mlp_ext::step
