// An activation by itself, for products that a library worked out without bias and activation.
#pragma once

#include <cstdint>

#include "../../common/activation_kind.h"
#include "../../common/half.h"
#include "../cuda_api.h"

namespace mlp_ext::cuda {

// z = x + bias[n], y = f(z) over (rows, columns); z is rounded to T first, so that y is f of the z
// that is stored. `bias` and `z` may be null; y and z may each be x itself. T: float, double,
// BFloat16, Float16.
template <class T>
struct ActivationArgs {
  int64_t rows, columns;
  Activation activation;
  const T* x;
  int64_t ld_x;
  const T* bias;
  T* y;
  int64_t ld_y;
  T* z;
  int64_t ld_z;
};

template <class T>
cudaError_t activation(const ActivationArgs<T>& args, cudaStream_t stream);

}  // namespace mlp_ext::cuda
