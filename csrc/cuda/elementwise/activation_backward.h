// The backward pass of an activation with the bias gradient: what every product without a fused
// backward pass is followed by, and on its own a column sum.
#pragma once

#include <cstdint>

#include "../../common/activation_kind.h"
#include "../../common/half.h"
#include "../cuda_api.h"
#include "../device_info.h"

namespace mlp_ext::cuda {

// dz = dy * f'(saved) over (rows, columns), f as its functor says; `sum[n]` receives the column
// sums of dz before its rounding to T. `dz` may be null, and may be `dy` or `saved` itself; `sum`
// may be null. With f = none `saved` is not read: then this copies, sums, or both. T: float,
// double, BFloat16, Float16. Sums are in float (double for double), in an order that the sizes and
// the device alone decide; of no rows they are 0.
template <class T>
struct ActivationBackwardArgs {
  int64_t rows, columns;
  Activation activation;
  const T* dy;
  int64_t ld_dy;
  const T* saved;
  int64_t ld_saved;
  T* dz;
  int64_t ld_dz;
  T* sum;
};

// Bytes, aligned to 16, that a call with a `sum` needs; 0 for small problems.
template <class T>
size_t activation_backward_workspace(int64_t rows, int64_t columns, const DeviceInfo& device);

// One launch, and where the workspace is not 0 bytes and a sum is wanted a second.
template <class T>
cudaError_t activation_backward(const ActivationBackwardArgs<T>& args, void* workspace,
                                const DeviceInfo& device, cudaStream_t stream);

}  // namespace mlp_ext::cuda
