// Where ReLU let its input through, one bit an element: what the gradient epilogues of cuBLASLt
// read. The forward pass could have the library write it, but keeps the output anyway, for the next
// layer's weight gradient, and the list of what the op _mlp_forward saves is the same on all
// devices.
#pragma once

#include <cstdint>

#include "../../common/half.h"
#include "../cuda_api.h"

namespace mlp_ext::cuda {

// Of y (rows, columns), the output of ReLU: bit n % 8 of byte n / 8 of a row is set where the
// derivative is 1, which NaN has too. A row has ld_mask / 8 bytes, those behind the columns 0;
// ld_mask, in bits, is a multiple of 8 and at least `columns`. T: float, double, BFloat16, Float16.
template <class T>
struct ReluMaskArgs {
  int64_t rows, columns;
  const T* y;
  int64_t ld_y;
  uint8_t* mask;
  int64_t ld_mask;
};

template <class T>
cudaError_t relu_mask(const ReluMaskArgs<T>& args, cudaStream_t stream);

}  // namespace mlp_ext::cuda
