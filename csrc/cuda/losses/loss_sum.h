// The sum of a loss over all blocks of a launch, in one fixed order whichever block is the last.
//
// Each block leaves its part in the workspace and counts itself; the one that finds that it is the
// last adds up all parts. The counter is set to 0 by the launch before (start_loss_kernel or one
// that does more), so that a captured graph may be replayed.
#pragma once

#include "../../common/function.h"
#include "../pack.h"
#include "../reduction.h"
#include "../simt.h"

MLP_NAMESPACE_BEGIN

template <class C>
constexpr C kNan = std::numeric_limits<C>::quiet_NaN();

// At the front of the workspace; `parts` of a launch's blocks behind it.
struct alignas(16) LossWorkspace {
  unsigned finished;  // blocks
  MLP_FN double* parts() { return reinterpret_cast<double*>(this + 1); }
};

inline size_t loss_workspace(int64_t parts) {
  return sizeof(LossWorkspace) + static_cast<size_t>(parts) * sizeof(double);
}

// Of all threads' numbers, to all threads. `shared`: THREADS / 32 doubles; all of a block's uses of
// it are calls of this.
template <int THREADS>
MLP_DEVICE double sum_of_block(double mine, double* shared) {
  for (int d = 16; d > 0; d /= 2) mine += __shfl_xor_sync(~0u, mine, d);
  __syncthreads();  // an earlier sum has been read
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = mine;
  __syncthreads();
  double sum = 0;
  for (int w = 0; w < THREADS / 32; ++w) sum += shared[w];
  return sum;
}

// The weights that a mean is over are summed by the launch before: `count` parts, of which each
// block of this launch works out the sum for itself, so that the gradient's scale needs no turn to
// the host. No weights: null, and the mean is over `elements`.
struct WeightParts {
  double* parts;
  int count;
};
// One part a thread of the kernels that add them up.
constexpr int kMostWeightParts = 256;

// What losses and gradients are multiplied by. A mean over nothing is NaN, as in PyTorch.
template <int THREADS>
MLP_DEVICE double scale_of(Reduction reduction, int64_t elements, const WeightParts& weights,
                           double* shared) {
  if (reduction != Reduction::mean) return 1;
  double total = static_cast<double>(elements);
  if (weights.parts) {
    const bool has_part = static_cast<int>(threadIdx.x) < weights.count;
    total = sum_of_block<THREADS>(has_part ? weights.parts[threadIdx.x] : 0.0, shared);
  }
  return total == 0 ? kNan<double> : 1 / total;
}

// `mine`: the thread's part. Receives scale times the sum: *loss.
template <int THREADS, class T>
MLP_DEVICE void finish_loss(double mine, double scale, LossWorkspace* workspace, T* loss,
                            double* shared) {
  const double part = sum_of_block<THREADS>(mine, shared);
  bool is_last = false;
  if (threadIdx.x == 0) {
    workspace->parts()[blockIdx.x] = part;
    __threadfence();
    is_last = atomicAdd(&workspace->finished, 1u) == gridDim.x - 1;
  }
  if (!__syncthreads_or(is_last)) return;
  __threadfence();
  const volatile double* const parts = workspace->parts();  // not from a cache of before
  double sum = 0;
  for (unsigned i = threadIdx.x; i < gridDim.x; i += THREADS) sum += parts[i];
  sum = sum_of_block<THREADS>(sum, shared);
  if (threadIdx.x == 0) *loss = from_compute<T>(static_cast<ComputeType<T>>(sum * scale));
}

MLP_NAMESPACE_END
