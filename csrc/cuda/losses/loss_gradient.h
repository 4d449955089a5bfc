// What the gradient of a loss is written in.
#pragma once

#include <type_traits>

namespace mlp_ext::cuda {

// The type of computation: of 16-bit inputs float. The incoming gradient is applied to it before it
// is rounded, since under a loss scale what is small would be lost by rounding first.
template <class T>
using LossGradient = std::conditional_t<std::is_same_v<T, double>, double, float>;

}  // namespace mlp_ext::cuda
