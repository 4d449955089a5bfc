// The product of gemm.h by cuBLASLt: large products of 16 bits and tf32, for which the library has
// wgmma and its successors where ours has mma.sync; and those of float64.
//
// Same arguments, same results but for the last bits. What the library fuses is fused (the bias;
// ReLU's derivative and the sum of its columns; the bias gradient beside a weight gradient), the
// rest follows by our elementwise kernels (and c and saved may then not be one). The library's own
// ReLU is left out: it documents max(x, 0) and not what NaN becomes.
#pragma once

#include "../gemm/gemm.h"
#include "../gemm/gemm_force.h"
#include "lt_heuristics.h"
#include "lt_plan.h"

namespace mlp_ext::cuda {

// A product that the library has. Made by lt_gemm_plan, run by lt_gemm with the same arguments.
template <class T>
struct LtGemm {
  GemmArgs<T> args;
  LtProblem problem;
  LtPlan plan;
  void* vector = nullptr;  // of the epilogue: the bias, or a sum to write
  // What our kernels do behind it.
  bool activates = false, derives = false;
  int64_t ld_mask = 0;                       // bits; 0 without a mask
  size_t mask_bytes = 0, scratch_bytes = 0;  // the parts of the workspace

  size_t workspace() const { return mask_bytes + scratch_bytes; }
  // Whether c is multiplied by a derivative.
  bool changes() const { return args.saved && args.activation != Activation::none; }
  // Of our kernels, before and behind the library's.
  Passes passes() const {
    const double elements = double(args.M) * double(args.N);
    return {(ld_mask > 0) + activates + derives * (args.column_sum ? 2 : 1),
            elements * ((ld_mask > 0) + activates * 2 + derives * (changes() ? 3 : 1))};
  }
};

// For T = float, double, BFloat16, Float16. False where the library does not have this product, or
// not with these addresses and strides; `product` is then of no use. Whether it is the faster one
// is another question (lt_is_chosen). row_sum[m] (may be null) receives the sum over k of A: the
// bias gradient beside a weight gradient, whose A is dz^T.
template <class T>
bool lt_gemm_plan(const GemmArgs<T>& args, T* row_sum, Precision precision,
                  const DeviceInfo& device, const Library& library, LtGemm<T>& product);

// Whether to ask the library at all: always in float64; else where a product is large enough to be
// worth its launches, or `library` is forced (gemm_force.h); never where `own` is.
template <class T>
bool lt_may_be_chosen(const GemmArgs<T>& g, Precision precision) {
  if (is_forced(Forced::own)) return false;
  if (std::is_same_v<T, double> || is_forced(Forced::library)) return true;
  if (is_forced(Forced::plan) || (std::is_same_v<T, float> && precision == Precision::full))
    return false;
  return is_library_work(g.M, g.N, g.K);
}

// Of a product that it has and that may be chosen: whether it is expected to be faster than ours.
template <class T>
bool lt_is_chosen(const LtGemm<T>& product, const DeviceInfo& device) {
  if (std::is_same_v<T, double> || is_forced(Forced::library)) return true;
  const GemmArgs<T>& g = product.args;
  const bool sums = product.problem[LtProblem::kEpilogue] == int64_t(LtEpilogue::sum_of_b);
  const Passes ours = sums ? Passes{2, double(g.M) * double(g.K)} : Passes{};
  return library_is_faster(device, {int(sizeof(T)), 1}, g.M, g.N, g.K, product.passes(), ours);
}

struct LtResult {
  cudaError_t error = cudaSuccess;  // of our kernels
  cublasStatus_t status = CUBLAS_STATUS_SUCCESS;

  // The library has not done what its heuristic had offered. Nothing is written, but to the
  // workspace, and it is not asked again.
  bool refused() const {
    return status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE ||
           status == CUBLAS_STATUS_ARCH_MISMATCH;
  }
};

// The workspace has product.workspace() bytes, 256-byte aligned.
template <class T>
LtResult lt_gemm(const LtGemm<T>& product, const DeviceInfo& device, const Library& library,
                 void* workspace, cudaStream_t stream);

}  // namespace mlp_ext::cuda
