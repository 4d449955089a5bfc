#include "lt_gemm.h"

#include <algorithm>

#include "../elementwise/activation.h"
#include "../elementwise/activation_backward.h"
#include "../elementwise/relu_mask.h"

namespace mlp_ext::cuda {

namespace {

template <class T>
constexpr cudaDataType_t kLtType = std::is_same_v<T, double>     ? CUDA_R_64F
                                   : std::is_same_v<T, BFloat16> ? CUDA_R_16BF
                                   : std::is_same_v<T, Float16>  ? CUDA_R_16F
                                                                 : CUDA_R_32F;

template <class T>
cublasComputeType_t compute_type(Precision precision) {
  if (std::is_same_v<T, double>) return CUBLAS_COMPUTE_64F;
  const bool tf32 = std::is_same_v<T, float> && precision == Precision::tf32;
  return tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
}

// The power of two up to 16 that an address is a multiple of. More is asked for by no load, and
// would be another plan, with other bits, for the same numbers elsewhere.
int64_t alignment_of(const void* p) {
  const uintptr_t bits = reinterpret_cast<uintptr_t>(p) | 16;
  return int64_t(bits & (~bits + 1));
}

constexpr int64_t rounded_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// A matrix of `rows` x `columns` with these strides, column by column: whether it is the transpose
// of one that is stored so, and the distance of its columns. False where it is neither.
bool column_major(int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride,
                  int64_t& transposed, int64_t& ld) {
  const bool down = row_stride == 1 || rows == 1, across = column_stride == 1 || columns == 1;
  if (down && (column_stride >= rows || columns == 1)) {
    transposed = 0, ld = std::max(column_stride, rows);
  } else if (across && (row_stride >= columns || rows == 1)) {
    transposed = 1, ld = std::max(row_stride, columns);
  } else {
    return false;
  }
  return true;
}

// The product itself: ours row by row is the library's column by column with A and B exchanged.
template <class T>
bool describe(const GemmArgs<T>& g, Precision precision, const DeviceInfo& device, LtProblem& p) {
  using P = LtProblem;
  p[P::kType] = kLtType<T>, p[P::kCompute] = compute_type<T>(precision);
  p[P::kM] = g.N, p[P::kN] = g.M, p[P::kK] = g.K;
  p[P::kLdD] = std::max(g.ldc, g.N);
  p[P::kAlignA] = alignment_of(g.b), p[P::kAlignB] = alignment_of(g.a);
  p[P::kAlignD] = alignment_of(g.c);
  p[P::kArch] = device.arch, p[P::kMultiprocessors] = device.multiprocessors;
  return (g.ldc >= g.N || g.M == 1) &&
         column_major(g.N, g.K, g.b_col, g.b_row, p[P::kTransposeA], p[P::kLdA]) &&
         column_major(g.K, g.M, g.a_col, g.a_row, p[P::kTransposeB], p[P::kLdB]);
}

template <class T>
bool ask(const Library& library, LtEpilogue epilogue, T* vector, LtGemm<T>& product) {
  if (reinterpret_cast<uintptr_t>(vector) % kLtVectorAlign != 0) return false;
  product.problem[LtProblem::kEpilogue] = int64_t(epilogue);
  product.problem[LtProblem::kLdMask] = product.ld_mask;
  product.plan = lt_plan(library, product.problem);
  product.vector = vector;
  return product.plan.possible;
}

// dX: ReLU's derivative and the bias gradient in the product's epilogue, else behind it.
template <class T>
bool plan_backward(const Library& library, const DeviceInfo& device, LtGemm<T>& product) {
  const GemmArgs<T>& g = product.args;
  if (g.saved && g.activation == Activation::relu) {
    product.ld_mask = rounded_up(g.N, kLtMaskBits);
    product.mask_bytes = size_t(rounded_up(g.M * product.ld_mask / 8, kLtMaskAlign));
    const auto epilogue = g.column_sum ? LtEpilogue::relu_gradient_sum : LtEpilogue::relu_gradient;
    if (ask(library, epilogue, g.column_sum, product)) return true;
    product.ld_mask = 0, product.mask_bytes = 0;
  }
  if (product.changes() && g.saved == g.c) return false;  // the product would be written over it
  product.derives = product.changes() || g.column_sum;
  if (g.column_sum) {
    product.scratch_bytes = activation_backward_workspace<T>(g.M, g.N, device);
  }
  return ask<T>(library, LtEpilogue::none, nullptr, product);
}

}  // namespace

template <class T>
bool lt_gemm_plan(const GemmArgs<T>& args, T* row_sum, Precision precision,
                  const DeviceInfo& device, const Library& library, LtGemm<T>& product) {
  product = {};
  product.args = args;
  GemmArgs<T>& g = product.args;
  if (!g.c) g.c = g.activated, g.ldc = g.ld_activated, g.activated = nullptr;
  if (!library.functions || g.M == 0 || g.N == 0 || g.K == 0) return false;
  if (!describe(g, precision, device, product.problem)) return false;
  bool possible = false;
  if (row_sum) {
    const bool alone = !g.bias && g.activation == Activation::none && !g.saved && !g.column_sum;
    possible = alone && ask(library, LtEpilogue::sum_of_b, row_sum, product);
  } else if (g.bias) {
    product.activates = g.activation != Activation::none || g.activated;
    possible = !g.saved && !g.column_sum &&
               ask(library, LtEpilogue::bias, const_cast<T*>(g.bias), product);
  } else if (!g.saved && (g.activation != Activation::none || g.activated)) {
    product.activates = true;
    possible = !g.column_sum && ask<T>(library, LtEpilogue::none, nullptr, product);
  } else {
    possible = plan_backward(library, device, product);
  }
  product.scratch_bytes = std::max(product.scratch_bytes, product.plan.workspace);
  return possible;
}

template <class T>
LtResult lt_gemm(const LtGemm<T>& product, const DeviceInfo& device, const Library& library,
                 void* workspace, cudaStream_t stream) {
  const GemmArgs<T>& g = product.args;
  uint8_t* const mask = static_cast<uint8_t*>(workspace);
  void* const scratch = mask + product.mask_bytes;
  LtResult result;
  if (product.ld_mask > 0) {
    result.error = relu_mask<T>({g.M, g.N, g.saved, g.ld_saved, mask, product.ld_mask}, stream);
    if (result.error != cudaSuccess) return result;
  }
  const LtOperands operands{g.b, g.a, g.c, product.vector, product.ld_mask > 0 ? mask : nullptr};
  result.status = lt_matmul(library, product.problem, product.plan, operands, scratch, stream);
  if (result.refused()) lt_forget(product.problem);
  if (result.status != CUBLAS_STATUS_SUCCESS) return result;
  if (product.activates) {
    T* const y = g.activated ? g.activated : g.c;
    const int64_t ld_y = g.activated ? g.ld_activated : g.ldc;
    result.error =
        activation<T>({g.M, g.N, g.activation, g.c, g.ldc, nullptr, y, ld_y, nullptr, 0}, stream);
  }
  if (product.derives) {
    ActivationBackwardArgs<T> args{};
    args.rows = g.M, args.columns = g.N;
    args.activation = product.changes() ? g.activation : Activation::none;
    args.dy = g.c, args.ld_dy = g.ldc;
    args.saved = g.saved, args.ld_saved = g.ld_saved;
    args.dz = product.changes() ? g.c : nullptr, args.ld_dz = g.ldc;
    args.sum = g.column_sum;
    result.error = activation_backward(args, scratch, device, stream);
  }
  return result;
}

#define MLP_LT_GEMM(T)                                                                             \
  template bool lt_gemm_plan(const GemmArgs<T>&, T*, Precision, const DeviceInfo&, const Library&, \
                             LtGemm<T>&);                                                          \
  template LtResult lt_gemm(const LtGemm<T>&, const DeviceInfo&, const Library&, void*,            \
                            cudaStream_t);
MLP_LT_GEMM(float)
MLP_LT_GEMM(double)
MLP_LT_GEMM(BFloat16)
MLP_LT_GEMM(Float16)
#undef MLP_LT_GEMM

}  // namespace mlp_ext::cuda
