// One matrix product of cuBLASLt with its fused epilogue: what is asked, what its heuristic answers
// (kept for the next time), and the call.
//
// In the library's terms, column by column: D = op(A) op(B), D of m x n.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "../cuda_api.h"
#include "../device_info.h"
#include "lt_api.h"

namespace mlp_ext::cuda {

// What follows the product, or is summed beside it.
enum class LtEpilogue {
  none,
  bias,               // D[i, j] += vector[i]
  relu_gradient,      // D[i, j] = 0 where the mask has no bit
  relu_gradient_sum,  // and vector[i] = the sum over j of what D then is
  sum_of_b,           // vector[j] = the sum over k of B's column j
};

// Everything that the heuristic looks at. Two problems that are equal have one plan.
struct LtProblem {
  enum Field {
    kType,     // cudaDataType_t of A, B, D and the vector
    kCompute,  // cublasComputeType_t
    kTransposeA,
    kTransposeB,
    kM,
    kN,
    kK,
    kLdA,
    kLdB,
    kLdD,
    kEpilogue,
    kLdMask,  // bits; 0 without a mask
    kAlignA,  // bytes, of the addresses
    kAlignB,
    kAlignD,
    kArch,  // the plans of two kinds of GPU differ
    kMultiprocessors,
    kFields
  };
  std::array<int64_t, kFields> field{};

  int64_t& operator[](Field f) { return field[f]; }
  int64_t operator[](Field f) const { return field[f]; }
  bool operator==(const LtProblem& other) const { return field == other.field; }
};

// Vectors and masks begin at multiples of this; the mask's leading dimension is one of kMaskBits.
constexpr size_t kLtVectorAlign = 16, kLtMaskAlign = 256;
constexpr int64_t kLtMaskBits = 128;
// The most that a plan may ask for; what PyTorch gives the library on an H100.
constexpr size_t kLtMostWorkspace = 32 << 20;

struct LtPlan {
  bool possible = false;
  cublasLtMatmulAlgo_t algo{};
  size_t workspace = 0;  // bytes
};

struct LtOperands {
  const void* a;
  const void* b;
  void* d;
  void* vector = nullptr;
  const void* mask = nullptr;
};

// What the library has for a problem; not possible where it has nothing. Asked once a problem, for
// some tens of microseconds [estimate], and without touching the device: a stream that is captured
// may ask too. Sums are in float32 (float64) from end to end, whatever the split of K.
LtPlan lt_plan(const Library& library, const LtProblem& problem);

// `workspace` has plan.workspace bytes, 256-byte aligned.
cublasStatus_t lt_matmul(const Library& library, const LtProblem& problem, const LtPlan& plan,
                         const LtOperands& operands, void* workspace, cudaStream_t stream);

// From now on lt_plan says of the problem that it is not possible.
void lt_forget(const LtProblem& problem);

// The descriptors of a problem, made and destroyed: false where the library refuses one of their
// attributes. Needs no GPU; for tests.
bool lt_describes(const LtFunctions& functions, const LtProblem& problem);

}  // namespace mlp_ext::cuda
