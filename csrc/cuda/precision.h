// How float32 products are computed on tensor cores. Other types have one way each.
#pragma once

namespace mlp_ext::cuda {

enum class Precision {
  full,  // as accurate as float32 arithmetic: three tf32 products, sums promoted to float32
  tf32,  // operands rounded to tf32 (10 bits of mantissa), as PyTorch does where allowed to
};

}  // namespace mlp_ext::cuda
