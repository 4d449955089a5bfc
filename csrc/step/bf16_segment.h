// A run of Linear layers whose products are of bfloat16 numbers, with sums in float32, as under
// autocast: weights, input and the gradient from above are rounded to bfloat16 at each step, and so
// are the results of each product. What comes in and goes out is float32, the parameters too.
#pragma once

#include <memory>
#include <span>

#include "train_layer.h"

namespace mlp_ext::step {

// Whether the table has the products, and sums of that length: of features, and of rows.
bool has_bf16_products(const cpu::KernelTable& table, std::span<const TrainLayer<float>> layers,
                       int64_t rows);

// What the segment takes of memory beside its LayerBuffers (y of the last layer, dw and db of all).
int64_t bf16_segment_memory(std::span<const TrainLayer<float>> layers, int64_t rows);

// As make_stack_segment; none of the layers has a Dropout.
std::unique_ptr<Segment<float>> make_bf16_segment(const cpu::KernelTable& table,
                                                  std::span<const TrainLayer<float>> layers,
                                                  std::span<const LayerBuffers<float>> buffers,
                                                  int64_t rows, const float* dy, float* dx,
                                                  float* memory);

}  // namespace mlp_ext::step
