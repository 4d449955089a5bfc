// The forward pass of a stack of layers, as work for a team of threads.
//
// A plan is made for a number of threads; then every thread calls run(phase, thread, workspace) for
// each phase, with a barrier between two phases. Two ways to cut it:
//  - by rows, while the weights are few: each thread takes its rows through all layers, so there is
//    no barrier and the activations stay in its own caches;
//  - by layers: each layer's product is cut as a grid, one phase a layer, so that no two threads
//    read and pack the same large weight.
#pragma once

#include <vector>

#include "partition.h"

namespace mlp_ext::step {

struct Dropout {
  double probability = 0;
  uint64_t seed = 0;  // of this layer, this step
};

// Y[rows, out] = f(X[rows, in] W[out, in]^T + b), and the next layer reads Y, or dropout(Y).
template <class T>
struct ForwardLayer {
  int64_t in, out;
  const T* weight;
  int64_t ld_weight;
  const T* bias;  // null: none
  Activation activation;
  T* y;  // rows ld_y apart; z and dropped are dense
  int64_t ld_y;
  T* z;                  // receives the pre-activation, for backward; null: not kept
  T* dropped = nullptr;  // receives dropout(y); null: no dropout
  Dropout dropout = {};
};

template <class T>
class StackForward {
 public:
  using Scalar = T;

  // x: (rows, layers[0].in), rows ld_x apart.
  StackForward(const cpu::ComputeKernels<T>& kernels, const T* x, int64_t ld_x, int64_t rows,
               std::vector<ForwardLayer<T>> layers);

  // For a plan that is run again.
  void set_input(const T* x, int64_t ld_x) { x_ = x, ld_x_ = ld_x; }
  void set_seed(size_t layer, uint64_t seed) { layers_[layer].dropout.seed = seed; }

  size_t layers() const { return layers_.size(); }
  int64_t work() const;
  void cut_for(int threads);

  int64_t workspace() const { return kernels_.gemm_workspace; }
  bool cut_by_rows() const { return by_rows_; }
  int64_t shared_workspace() const { return 0; }
  int phases() const { return by_rows_ ? 1 : static_cast<int>(layers_.size()); }
  // workspace: workspace() elements, one a thread.
  void run(int phase, int thread, T* workspace, T* shared = nullptr) const;

 private:
  cpu::GemmArgs<T> product(size_t layer) const;
  void run_part(size_t layer, Range m, Range n, T* workspace) const;

  const cpu::ComputeKernels<T>& kernels_;
  const T* x_;
  int64_t ld_x_, rows_;
  std::vector<ForwardLayer<T>> layers_;
  int threads_ = 1;
  bool by_rows_ = true;
};

// Whether a stack with `weights` elements of weights in all is better cut by rows than by layers.
bool better_by_rows(int64_t rows, int64_t weights, int threads);

template <class Layers>
bool better_by_rows(int64_t rows, const Layers& layers, int threads) {
  int64_t weights = 0;
  for (const auto& layer : layers) weights += layer.out * layer.in;
  return better_by_rows(rows, weights, threads);
}

}  // namespace mlp_ext::step
