// Every kernel of one ISA, and its table. Included inside a target region, after the ISA's Vec.

#include "../../common/math.h"
#include "compute_type.h"
#include "math.h"
#include "../../common/activation.h"
#include "../../common/optimizer_rules.h"
#include "epilogue.h"
#include "microkernel.h"
#include "packing.h"
#include "gemm_dot.h"
#include "gemm_outer.h"
#include "gemm_swapped.h"
#include "gemm.h"
#include "sums.h"
#include "activation_backward.h"
#include "cross_entropy_rows.h"
#include "cross_entropy_lanes.h"
#include "cross_entropy.h"
#include "../../common/elementwise_losses.h"
#include "elementwise_loss.h"
#include "dropout.h"
#include "normalization.h"
#include "optimizers.h"
#include "convert.h"

#define MLP_STRINGIZE(x) #x
#define MLP_STRING(x) MLP_STRINGIZE(x)

MLP_NAMESPACE_BEGIN

template <class T>
constexpr ComputeKernels<T> kCompute = {
    gemm<T>,
    kGemmWorkspace<T>,
    Tile<T>::kRows,
    kPanelWidth<T>,
    /*most_depth=*/std::numeric_limits<int64_t>::max(),
    activation_backward<T>,
    cross_entropy<T>,
    add<T>,
    sum_of_squares<T>,
    elementwise_loss<T>,
    dropout<T>,
    activation<T>,
    norm_statistics<T>,
    normalize<T>,
    norm_parameter_grads<T>,
    norm_input_grad<T>,
};

template <class S>
constexpr OptimizerKernels<S> kOptimizer = {sgd<S>, adam<S>};

MLP_NAMESPACE_END

namespace mlp_ext::cpu::MLP_ISA {
extern constexpr KernelTable kTable = {
    MLP_STRING(MLP_ISA),      kCompute<float>,          kCompute<double>,    kOptimizer<float>,
    kOptimizer<double>,       kOptimizer<BFloat16>,     kOptimizer<Float16>, /*bf16=*/nullptr,
    convert<float, BFloat16>, convert<BFloat16, float>,
};
}  // namespace mlp_ext::cpu::MLP_ISA
