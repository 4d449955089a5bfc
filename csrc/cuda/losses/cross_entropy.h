// Softmax cross-entropy: the loss and its gradient in one pass over the logits.
#pragma once

#include <cstdint>

#include "../../common/half.h"
#include "../cuda_api.h"
#include "../device_info.h"
#include "../reduction.h"
#include "loss_gradient.h"

namespace mlp_ext::cuda {

// Of `classes` logits a row, against class indices or probabilities. With e = label_smoothing, C =
// classes and q = 1 at the target, 0 elsewhere, or the row of `probabilities`,
//   loss = sum_c weight[c] ((1 - e) q[c] + e / C) nll(c);
// weight is 1 where null. Rows whose target is ignore_index give 0 and gradient 0. The mean is over
// the sum of the targets' weights, or with probabilities over the rows; over nothing it is NaN.
//
// Nobody has checked the targets: that would take the device's answer to the host. Each is read
// once, and checked as it was read. A target that is neither a class nor ignore_index reads
// nothing: the loss and the gradient of its row are NaN, and with them the sum, the mean and every
// gradient of the mean. (PyTorch's kernel asserts, after which the process can no longer use the
// device.)
//
// logits, probabilities and grad have a row every ld elements and a class every class_stride; one
// of the two is 1. Rows that lie side by side (ld 1) may be in several images, whose elements
// follow one another; otherwise images is 1. `grad` may be null, and `logits` itself if of its
// type; it receives the gradient of the reduced loss, for `none` that of each row's. `loss`
// receives one element, for `none` one a row. T: float, double, BFloat16, Float16, computed in
// float (double for double), sums of rows in double, in an order that sizes, alignment and the
// device decide.
template <class T>
struct CrossEntropyArgs {
  int64_t images, rows, classes;  // rows: of each image
  int64_t class_stride;
  const T* logits;
  int64_t ld_logits;
  const int64_t* target;   // null: probabilities
  const T* probabilities;  // null: target
  int64_t ld_probabilities;
  const T* weight;
  int64_t ignore_index;
  double label_smoothing;
  Reduction reduction;
  LossGradient<T>* grad;
  int64_t ld_grad;
  T* loss;
};

// Bytes, aligned to 16; 0 for `none`.
size_t cross_entropy_workspace(Reduction reduction, const DeviceInfo& device);

// One launch for `none`, two otherwise.
template <class T>
cudaError_t cross_entropy(const CrossEntropyArgs<T>& args, void* workspace,
                          const DeviceInfo& device, cudaStream_t stream);

}  // namespace mlp_ext::cuda
