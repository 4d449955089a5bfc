// The matrix product of a layer with what follows it, on tensor cores: forward, input gradient and
// weight gradient are this one function at three layouts.
//
//   C[M,N] = A[M,K] B[K,N],   A[m,k] = a[m * a_row + k * a_col],   B[k,n] = b[k * b_row + n *
//   b_col]
//
// one stride of each pair is 1. Then, on each element as its sum is complete,
//   c += bias[n]                                              (bias may be null)
//   saved == null: (activated ? activated : c) = f(c)         the forward pass of a layer
//   saved != null: c = c * f'(saved[m, n])                    the backward pass
// f as its functor in common/activation.h. `c` may be null where only `activated` is wanted. K = 0
// gives the epilogue of zeros. Outputs must not overlap inputs, but for c and saved being one.
// 16-bit types sum in float32 and round once before the activation or its derivative, as PyTorch's
// separate operations do.
//
// column_sum[n] (may be null) is the sum over m of c as it is stored, or of `activated` where c is
// null: the bias gradient of the layer below, or of this one, without another pass. Fixed order.
//
// Same arguments, precision and device: same bits. No atomics, no counters, nothing to reset: any
// workspace will do, and launches may be captured in a graph and replayed.
#pragma once

#include <cstdint>

#include "../../common/activation_kind.h"
#include "../../common/half.h"
#include "../cuda_api.h"
#include "../device_info.h"
#include "../precision.h"

namespace mlp_ext::cuda {

template <class T>
struct GemmArgs {
  int64_t M, N, K;
  const T* a;
  int64_t a_row, a_col;
  const T* b;
  int64_t b_row, b_col;
  T* c;
  int64_t ldc;
  const T* bias = nullptr;
  Activation activation = Activation::none;
  T* activated = nullptr;
  int64_t ld_activated = 0;
  const T* saved = nullptr;
  int64_t ld_saved = 0;
  T* column_sum = nullptr;
};

// For T = float, BFloat16, Float16. The workspace has gemm_workspace bytes, 16-byte aligned; null
// where those are 0. Devices of compute capability 8.0 and up.
//
// Tile and split are heuristics.h's, or what gemm_force.h forces.
template <class T>
size_t gemm_workspace(const GemmArgs<T>& args, Precision precision, const DeviceInfo& device);
template <class T>
cudaError_t gemm(const GemmArgs<T>& args, Precision precision, const DeviceInfo& device,
                 void* workspace, cudaStream_t stream);

#define MLP_DECLARE_GEMM(T)                                                \
  template <>                                                              \
  size_t gemm_workspace(const GemmArgs<T>&, Precision, const DeviceInfo&); \
  template <>                                                              \
  cudaError_t gemm(const GemmArgs<T>&, Precision, const DeviceInfo&, void*, cudaStream_t);
MLP_DECLARE_GEMM(float)
MLP_DECLARE_GEMM(BFloat16)
MLP_DECLARE_GEMM(Float16)
#undef MLP_DECLARE_GEMM

}  // namespace mlp_ext::cuda
