// The elementwise losses: value and gradient with respect to the input in one pass.
#pragma once

#include <cstdint>

#include "../../common/half.h"
#include "../../common/loss_kind.h"
#include "../cuda_api.h"
#include "../device_info.h"
#include "../reduction.h"
#include "loss_gradient.h"

namespace mlp_ext::cuda {

// Of n elements in one run against as many targets. `weight`, one an element, multiplies value and
// gradient; `pos_weight` has one value a column, that of element i at i % columns; both may be
// null. The mean is over the number of elements, or over the sum of `weight`. `grad` may be null,
// and `input` itself if of its type; it receives the gradient of the reduced loss, for `none` that
// of each element's. `loss` receives one element, for `none` n. T: float, double, BFloat16,
// Float16, computed in float (double for double), summed in double, in an order that n, alignment
// and the device decide. bce reads its input and targets as they are: a probability outside [0, 1]
// gives NaN, a target outside it no error.
template <class T>
struct ElementwiseLossArgs {
  LossKind kind;
  int64_t n, columns;
  const T* input;
  const T* target;
  const T* weight;
  const T* pos_weight;
  double parameter;  // huber's delta, smooth_l1's beta
  Reduction reduction;
  bool mean_by_weight;
  LossGradient<T>* grad;
  T* loss;
};

// Bytes, aligned to 16; 0 for `none`.
size_t elementwise_loss_workspace(Reduction reduction, const DeviceInfo& device);

// One launch for `none`, two otherwise.
template <class T>
cudaError_t elementwise_loss(const ElementwiseLossArgs<T>& args, void* workspace,
                             const DeviceInfo& device, cudaStream_t stream);

}  // namespace mlp_ext::cuda
