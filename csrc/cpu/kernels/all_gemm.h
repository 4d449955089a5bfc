// The products of one ISA, and their table. Included inside a target region, after the ISA's Vec.

#include "../../common/math.h"
#include "compute_type.h"
#include "math.h"
#include "../../common/activation.h"
#include "epilogue.h"
#include "microkernel.h"
#include "packing.h"
#include "gemm_dot.h"
#include "gemm_outer.h"
#include "gemm_swapped.h"
#include "gemm.h"

MLP_NAMESPACE_BEGIN

template <class T>
constexpr GemmKernel<T> kGemmOf = {
    gemm<T>,
    /*blocks=*/{Tile<T>::kKC, 0, 0, 0},  // dispatch.cpp adds those of the host's caches
    /*gemm_workspace=*/0,
    Tile<T>::kRows,
    kPanelWidth<T>,
    /*most_depth=*/std::numeric_limits<int64_t>::max(),
};

MLP_NAMESPACE_END

namespace mlp_ext::cpu::MLP_ISA {
extern constexpr GemmKernels kGemm = {kGemmOf<float>, kGemmOf<double>};
}  // namespace mlp_ext::cpu::MLP_ISA
