// The kernels of an ISA's bfloat16 dot products, and their table. Included inside a target region,
// after the ISA's Vec and Pairs.

#include "../../common/math.h"
#include "compute_type.h"
#include "math.h"
#include "../../common/activation.h"
#include "epilogue.h"
#include "packing_pairs.h"
#include "gemm_pairs.h"
#include "activation_backward.h"

namespace mlp_ext::cpu::MLP_ISA {
extern constexpr ComputeKernels<BFloat16> kTable = {
    {gemm_pairs, /*blocks=*/{}, 4 * kPairBlock, kPairRows, kPairPanel, kMostPairDepth},
    activation_backward<BFloat16>,
    /*cross_entropy=*/nullptr,
    /*add=*/nullptr,
    /*sum_of_squares=*/nullptr,
    /*scale=*/nullptr,
    /*elementwise_loss=*/nullptr,
    /*dropout=*/nullptr,
    /*activation=*/nullptr,
    /*norm_statistics=*/nullptr,
    /*normalize=*/nullptr,
    /*norm_parameter_grads=*/nullptr,
    /*norm_input_grad=*/nullptr,
};
}  // namespace mlp_ext::cpu::MLP_ISA
