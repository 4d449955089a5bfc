// One layer that is no product: batch or layer normalization or neither, its activation, Dropout.
#pragma once

#include <memory>

#include "train_layer.h"

namespace mlp_ext::step {

// `dy`: the gradient of what the layer gives, which is overwritten. `dx`: receives that of its
// input; null if nothing below wants it.
template <class T>
std::unique_ptr<Segment<T>> make_norm_segment(const cpu::ComputeKernels<T>& kernels,
                                              const TrainLayer<T>& layer,
                                              const LayerBuffers<T>& buffers, int64_t rows, T* dy,
                                              T* dx);

}  // namespace mlp_ext::step
