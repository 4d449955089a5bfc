// Every kernel of one ISA but the products, and their table. Included inside a target region, after
// the ISA's Vec.

#include "../../common/math.h"
#include "compute_type.h"
#include "math.h"
#include "../../common/activation.h"
#include "../../common/optimizer_rules.h"
#include "epilogue.h"
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

MLP_NAMESPACE_BEGIN

template <class T>
constexpr ComputeKernels<T> kCompute = {
    /*products, of all_gemm.h=*/{},
    activation_backward<T>,
    cross_entropy<T>,
    add<T>,
    sum_of_squares<T>,
    scale<T>,
    elementwise_loss<T>,
    dropout<T>,
    activation<T>,
    norm_statistics<T>,
    normalize<T>,
    norm_parameter_grads<T>,
    norm_input_grad<T>,
};

template <class S>
constexpr OptimizerKernels<S> kOptimizer = {
#define MLP_RULE(name, Name) step<Name##Rule, Name##Args, S>,
    MLP_FOR_EACH_RULE(MLP_RULE)
#undef MLP_RULE
};

template <class S>
constexpr MasterKernels<S> kMaster = {
#define MLP_RULE(name, Name) step_master<Name##Rule, Name##Args, S>,
    MLP_FOR_EACH_RULE(MLP_RULE)
#undef MLP_RULE
};

MLP_NAMESPACE_END

namespace mlp_ext::cpu::MLP_ISA {
extern constexpr KernelTable kTable = {
    /*name=*/nullptr,    kCompute<float>,          kCompute<double>,
    kOptimizer<float>,   kOptimizer<double>,       kOptimizer<BFloat16>,
    kOptimizer<Float16>, kMaster<BFloat16>,        kMaster<Float16>,
    /*bf16=*/nullptr,    convert<float, BFloat16>, convert<BFloat16, float>,
};
}  // namespace mlp_ext::cpu::MLP_ISA
