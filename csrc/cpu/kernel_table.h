// What an ISA implements: typed function pointers. kernels/all_gemm.h fills in the products,
// kernels/all.h the rest, each in a file of targets/ (so that no file takes minutes to compile),
// and dispatch.cpp joins them.
//
// Kernels take raw pointers, strides in elements and ranges [begin, end). They neither allocate,
// nor start threads, nor throw; the caller cuts the work and owns every buffer.
#pragma once

#include <cstdint>

#include "../common/activation_kind.h"
#include "../common/half.h"
#include "../common/loss_kind.h"
#include "../common/optimizer_args.h"

namespace mlp_ext::cpu {

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// C[M,N] = A[M,K] B[K,N] with K >= 1, then the epilogue. A[m,k] = a[m * a_row + k * a_col], B
// likewise, and one of b_row, b_col is 1. The epilogue, on each element as its sum is complete:
//   c += bias[n];
//   saved == null: (activated ? activated : c) = f(c)        the forward pass of a layer
//   saved != null: c = c * f'(saved[m, n])                   the backward pass, f as its functor
//   says
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
};

// dz = dy * f'(saved) over `rows` rows; `sum[n]` (may be null) receives the column sums of dz, and
// dz may be null when they are all that is wanted. With f = none, dz == null this is a column sum.
template <class T>
struct ActivationBackwardArgs {
  int64_t rows;
  Activation activation;
  const T* dy;
  int64_t ld_dy;
  const T* saved;
  int64_t ld_saved;
  T* dz;
  int64_t ld_dz;
  T* sum;
};

// Softmax cross-entropy of `classes` logits a row against class indices or probabilities, in one
// pass. With e = label_smoothing, C = classes and q = 1 at the target, 0 elsewhere, or the row of
// `probabilities`,
//   loss = sum_c weight[c] ((1 - e) q[c] + e / C) nll(c),
//   grad = scale * dloss / dlogits;
// weight is 1 where null. Rows whose target is ignore_index give 0 and 0. `grad` and `row_loss` may
// be null.
//
// The caller has checked the targets, but another thread may have written to them since. So a
// kernel reads each index once, and checks what it read: for an index out of range the row's loss
// and gradient are NaN, and no address is made of it.
//
// logits, probabilities and grad have a row every ld elements and a class every class_stride; one
// of the two is 1. Rows that lie side by side (ld 1) are the pixels of images, (N, C, d1, ...).
template <class T>
struct CrossEntropyArgs {
  int64_t classes;
  const T* logits;
  int64_t ld_logits;
  const int64_t* target;   // null: probabilities
  const T* probabilities;  // null: target
  int64_t ld_probabilities;
  const T* weight;
  double weight_sum;  // of all classes; `classes` without weights
  int64_t ignore_index;
  double label_smoothing;
  double scale;
  T* grad;
  int64_t ld_grad;
  T* row_loss;
  int64_t class_stride = 1;
};

// An elementwise loss of `columns` elements a row against targets of the same shape. `weight`, of
// the same shape, multiplies value and gradient; `pos_weight` has one value a column; both may be
// null, and so may `grad`, which receives scale * dloss / dinput, and `value`, which receives each
// element's loss.
template <class T>
struct ElementwiseLossArgs {
  LossKind kind;
  int64_t columns;
  const T* input;
  int64_t ld_input;
  const T* target;
  int64_t ld_target;
  const T* weight;
  int64_t ld_weight;
  const T* pos_weight;
  double parameter;  // huber's delta, smooth_l1's beta
  double scale;
  T* grad;
  int64_t ld_grad;
  T* value = nullptr;
  int64_t ld_value = 0;
};

// out = in * mask / (1 - probability), the mask by a hash of seed and place in `out`: the same for
// the same two. `in` and `out` may be one.
template <class T>
struct DropoutArgs {
  double probability;
  uint64_t seed;
  const T* in;
  int64_t ld_in;
  T* out;
  int64_t ld_out;
};

// out = f(in) over a range of rows and columns; `out` may be `in`.
template <class T>
struct ActivationArgs {
  Activation activation;
  const T* in;
  int64_t ld_in;
  T* out;
  int64_t ld_out;
};

// Normalization of (rows, columns): y = (x - mean) rstd gamma + beta. Statistics are one a row
// (layer norm) or one a column (batch norm).
template <class T>
struct NormArgs {
  bool per_row;
  bool constant_statistics;  // of the columns: they do not depend on x (evaluation mode)
  int64_t rows, columns;
  const T* x;
  int64_t ld_x;
  const T *gamma, *beta;  // one a column; null: 1 and 0
  double eps;
  T *mean, *variance, *rstd;  // variance (biased) only of columns
  T* y;
  int64_t ld_y;
  // The gradient of y, which must not be dx; dgamma and dbeta, one a column, may be null for
  // norm_parameter_grads, and are read by norm_input_grad where the statistics are the columns'
  // own.
  const T* dy;
  int64_t ld_dy;
  T* dx;
  int64_t ld_dx;
  T *dgamma, *dbeta;
};

// The blocks that a product is cut into (kernels/gemm.h), in elements: KC x NC of B, MC x KC of A.
struct Blocks {
  int64_t kc, mc, nc;
  int64_t l1;  // elements that L1 holds

  int64_t workspace() const { return kc * (mc + nc); }
};

// The product of one floating-point type.
template <class T>
struct GemmKernel {
  // The part of C given by the two ranges. `workspace` holds gemm_workspace elements, 64-byte
  // aligned. Cutting M at multiples of row_tile and N at multiples of column_tile keeps tiles full.
  void gemm(const GemmArgs<T>& args, Range m, Range n, T* workspace) const {
    run(args, m, n, blocks, workspace);
  }

  void (*run)(const GemmArgs<T>&, Range m, Range n, const Blocks&, T* workspace);
  Blocks blocks;  // {} for a kernel whose blocks are its own
  int64_t gemm_workspace, row_tile, column_tile;
  int64_t most_depth;  // the largest K that gemm takes
};

// The compute kernels of one floating-point type. Those of a 16-bit type sum in float32 and round
// each product once, before an activation other than ReLU as PyTorch does; they leave null what
// follows activation_backward.
template <class T>
struct ComputeKernels : GemmKernel<T> {
  void (*activation_backward)(const ActivationBackwardArgs<T>&, Range columns);
  // Returns the sum of the rows' losses.
  double (*cross_entropy)(const CrossEntropyArgs<T>&, Range rows);
  void (*add)(T* sum, const T* term, int64_t n);  // sum += term
  double (*sum_of_squares)(const T* x, int64_t n);
  void (*scale)(T* x, T factor, int64_t n);  // x *= factor
  // Returns the sum of all elements' losses.
  double (*elementwise_loss)(const ElementwiseLossArgs<T>&, Range rows);
  void (*dropout)(const DropoutArgs<T>&, Range rows, Range columns);
  void (*activation)(const ActivationArgs<T>&, Range rows, Range columns);
  // Mean and rstd of some rows, or mean, variance and rstd of some columns.
  void (*norm_statistics)(const NormArgs<T>&, Range rows_or_columns);
  void (*normalize)(const NormArgs<T>&, Range rows, Range columns);
  // dgamma and dbeta of some columns, summed over some rows.
  void (*norm_parameter_grads)(const NormArgs<T>&, Range rows, Range columns);
  // dx; all columns of the rows where the statistics are the rows'.
  void (*norm_input_grad)(const NormArgs<T>&, Range rows, Range columns);
};

// One step of a flat run of n elements of one parameter. states: as many pointers as the rule has
// states, in the order of its call in common/optimizer_rules.h; null where the options do without.
template <class Args, class S>
using StepKernel = void (*)(const Args&, S* param, const S* grad, S* const* states, int64_t n);

// The update rules for parameters, gradients and states stored as S; arithmetic in float (double
// for S = double). run() takes the kernel that its options belong to.
template <class S>
struct OptimizerKernels {
#define MLP_RULE(name, Name)                                                                     \
  StepKernel<Name##Args, S> name;                                                                \
  void run(const Name##Args& args, S* param, const S* grad, S* const* states, int64_t n) const { \
    name(args, param, grad, states, n);                                                          \
  }
  MLP_FOR_EACH_RULE(MLP_RULE)
#undef MLP_RULE
};

// The same for 16-bit parameters with master weights: the step is that of `master`, in float as the
// states are, and the parameter becomes its rounding. Where the parameter is not the rounding of
// its master before the step, something else has written to it since, and it is the parameter that
// takes the step.
template <class Args, class S>
using MasterStepKernel = void (*)(const Args&, S* param, const S* grad, float* const* states,
                                  float* master, int64_t n);

template <class S>
struct MasterKernels {
#define MLP_RULE(name, Name)                                                                     \
  MasterStepKernel<Name##Args, S> name;                                                          \
  void run(const Name##Args& args, S* param, const S* grad, float* const* states, float* master, \
           int64_t n) const {                                                                    \
    name(args, param, grad, states, master, n);                                                  \
  }
  MLP_FOR_EACH_RULE(MLP_RULE)
#undef MLP_RULE
};

struct GemmKernels {
  GemmKernel<float> f32;
  GemmKernel<double> f64;
};

struct KernelTable {
  const char* name;
  ComputeKernels<float> f32;
  ComputeKernels<double> f64;
  OptimizerKernels<float> optim_f32;
  OptimizerKernels<double> optim_f64;
  OptimizerKernels<BFloat16> optim_bf16;
  OptimizerKernels<Float16> optim_f16;
  MasterKernels<BFloat16> master_bf16;
  MasterKernels<Float16> master_f16;
  // Null where the ISA has no bfloat16 products: the caller converts to float32 and back.
  const ComputeKernels<BFloat16>* bf16;
  void (*to_bf16)(const float* from, BFloat16* to, int64_t n);
  void (*to_f32)(const BFloat16* from, float* to, int64_t n);
};

// The parts of a table that compute in T. That of bfloat16 may be asked for only where table.bf16
// is not null.
template <class T>
const ComputeKernels<T>& compute_kernels(const KernelTable& table) {
  if constexpr (sizeof(T) == sizeof(double)) {
    return table.f64;
  } else if constexpr (sizeof(T) == sizeof(BFloat16)) {
    return *table.bf16;
  } else {
    return table.f32;
  }
}
template <class T>
const OptimizerKernels<T>& optimizer_kernels(const KernelTable& table) {
  if constexpr (sizeof(T) == sizeof(double)) {
    return table.optim_f64;
  } else {
    return table.optim_f32;
  }
}

}  // namespace mlp_ext::cpu
