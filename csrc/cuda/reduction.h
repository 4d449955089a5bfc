// What a loss gives: the codes of torch's at::Reduction.
#pragma once

namespace mlp_ext::cuda {

enum class Reduction : int { none, mean, sum };

}  // namespace mlp_ext::cuda
