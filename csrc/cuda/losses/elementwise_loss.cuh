// Elementwise losses: a run of elements, each read once, its gradient written once. A thread takes
// 16 bytes of each stream at a time; sums of a pack are in the type of computation, all beyond in
// double. Where an address is not aligned to 16 bytes, or for what is left behind the last pack, it
// takes single elements.
#pragma once

#include "../elementwise/columns.h"
#include "elementwise_loss.h"
#include "loss_sum.h"
#include "../vec.h"

#include "../../common/elementwise_losses.h"

MLP_NAMESPACE_BEGIN

constexpr int kLossThreads = 256;

template <class T>
struct ElementwiseLossLaunch {
  ElementwiseLossArgs<T> args;
  LossWorkspace* workspace;  // null for `none`
  WeightParts weights;       // for a mean by weight
};

// The parts of the sum of the weights; and the workspace made ready.
template <class T>
__global__ void __launch_bounds__(kLossThreads)
    loss_weights_kernel(const __grid_constant__ ElementwiseLossLaunch<T> p) {
  if (blockIdx.x == 0 && threadIdx.x == 0) p.workspace->finished = 0;
  if (!p.weights.parts) return;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kLossThreads;
  double sum = 0;
  for (int64_t i = blockIdx.x * int64_t{kLossThreads} + threadIdx.x; i < p.args.n; i += step) {
    sum += static_cast<double>(to_compute(p.args.weight[i]));
  }
  sum = sum_of_block<kLossThreads>(sum, shared_memory<double>());
  if (threadIdx.x == 0) p.weights.parts[blockIdx.x] = sum;
}

// N elements from the i-th on. Returns the sum of their values.
template <class F, int N, class T, class C = ComputeType<T>>
MLP_DEVICE C losses_at(const ElementwiseLossArgs<T>& p, int64_t i, C scale) {
  using V = Vec<C>;
  const Chunk<T, N> x = load_chunk<T, N>(p.input + i), t = load_chunk<T, N>(p.target + i);
  Chunk<T, N> weight{}, value{};
  C grad[N];
  if (p.weight) weight = load_chunk<T, N>(p.weight + i);
  // Of elements below 2^31 the remainder is a matter of a few instructions.
  int64_t column = 0;
  if (p.columns > 1) {
    column = i < 0x7fffffff && p.columns < 0x7fffffff
                 ? static_cast<unsigned>(i) % static_cast<unsigned>(p.columns)
                 : i % p.columns;
  }
  C sum(0);
  MLP_UNROLL
  for (int j = 0; j < N; ++j) {
    const C pos_weight = p.pos_weight ? to_compute(p.pos_weight[column]) : C(1);
    LossAt<V> loss = F::at(V(to_compute(x.get(j))), V(to_compute(t.get(j))),
                           V(static_cast<C>(p.parameter)), V(pos_weight));
    if (p.weight) {
      const V w(to_compute(weight.get(j)));
      loss.value = loss.value * w;
      loss.slope = loss.slope * w;
    }
    sum += loss.value.v;
    value.set(j, from_compute<T>(loss.value.v));
    grad[j] = scale * loss.slope.v;
    column = column + 1 < p.columns ? column + 1 : 0;
  }
  if (p.grad) store_values(p.grad + i, grad);
  if (p.reduction == Reduction::none) store_chunk(p.loss + i, value);
  return sum;
}

template <class F, class T, int N>
__global__ void __launch_bounds__(kLossThreads, 1)
    elementwise_loss_kernel(const __grid_constant__ ElementwiseLossLaunch<T> p) {
  using C = ComputeType<T>;
  double* const shared = shared_memory<double>();
  const double scale = scale_of<kLossThreads>(p.args.reduction, p.args.n, p.weights, shared);
  const C factor = static_cast<C>(scale);
  const int64_t thread = blockIdx.x * int64_t{kLossThreads} + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kLossThreads, packs = p.args.n / N;
  double sum = 0;
  for (int64_t i = thread; i < packs; i += step) {
    sum += static_cast<double>(losses_at<F, N>(p.args, i * N, factor));
  }
  const int64_t last = packs * N + thread;
  if (N > 1 && last < p.args.n) sum += static_cast<double>(losses_at<F, 1>(p.args, last, factor));
  if (p.args.reduction != Reduction::none) {
    finish_loss<kLossThreads>(sum, scale, p.workspace, p.args.loss, shared);
  }
}

MLP_NAMESPACE_END
