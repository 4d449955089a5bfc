// Logits, targets and gradients of softmax cross-entropy as the kernels read them, on any device.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace mlp_ext {

struct CrossEntropyOptions {
  std::optional<at::Tensor> weight;
  int64_t reduction, ignore_index;
  double label_smoothing;
};

// How logits (N, C, d1, ...) are given to the kernel: as images of (C, pixels), in which the rows
// of C lie side by side, or as one image of (rows, C).
struct CrossEntropyLayout {
  int64_t images, rows, classes;
  bool side_by_side;

  int64_t class_stride() const { return side_by_side ? rows : 1; }
};

CrossEntropyLayout layout_of(const at::Tensor& input);

// In the order in which the kernel reads it, and in `type`. A copy where the classes are turned to
// the end, or their stride is not 1.
at::Tensor arranged(const at::Tensor& t, const CrossEntropyLayout& layout, at::ScalarType type);

// Elements from row to row of an arranged tensor.
int64_t row_stride_of(const at::Tensor& t, const CrossEntropyLayout& layout);

// An arranged gradient in the order of the input: contiguous, unless the input is channels_last, as
// the fake kernel says.
at::Tensor in_order_of(const at::Tensor& input, at::Tensor grad, const CrossEntropyLayout& layout);

// Of the loss: what is left of the input's sizes when the classes are gone, or none.
std::vector<int64_t> cross_entropy_sizes(const at::Tensor& input, int64_t reduction);

// ValueError for what is none of the three.
void check_reduction(int64_t reduction);

}  // namespace mlp_ext
