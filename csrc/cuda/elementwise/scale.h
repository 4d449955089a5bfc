// x *= factor, where the factor is on the device and mostly 1: the gradient of a loss that was
// worked out with it, in loss.backward().
#pragma once

#include <cstdint>

#include "../../common/half.h"
#include "../cuda_api.h"

namespace mlp_ext::cuda {

// Of n elements in one run. Reads the factor first: if it is 1, nothing else is read or written.
// T: float, double, BFloat16, Float16.
template <class T>
cudaError_t scale(T* x, int64_t n, const T* factor, cudaStream_t stream);

}  // namespace mlp_ext::cuda
