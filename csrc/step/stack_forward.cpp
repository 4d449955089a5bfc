#include "stack_forward.h"

#include <utility>

namespace mlp_ext::step {

namespace {

// With the activations of a few dozen rows they fit in a core's L2.
constexpr int64_t kMostWeightsByRows = 128 * 1024;
// Fewer rows a thread, and packing the weights for each of them costs too much.
constexpr int64_t kLeastRowsByRows = 24;

}  // namespace

bool better_by_rows(int64_t rows, int64_t weights, int threads) {
  return threads == 1 || (weights <= kMostWeightsByRows && rows >= kLeastRowsByRows * threads);
}

template <class T>
StackForward<T>::StackForward(const cpu::ComputeKernels<T>& kernels, const T* x, int64_t ld_x,
                              int64_t rows, std::vector<ForwardLayer<T>> layers)
    : kernels_(kernels), x_(x), ld_x_(ld_x), rows_(rows), layers_(std::move(layers)) {}

template <class T>
int64_t StackForward<T>::work() const {
  int64_t sum = 0;
  for (const auto& layer : layers_) sum += gemm_work(rows_, layer.out, layer.in);
  return sum;
}

template <class T>
void StackForward<T>::cut_for(int threads) {
  threads_ = threads;
  by_rows_ = better_by_rows(rows_, layers_, threads);
}

template <class T>
cpu::GemmArgs<T> StackForward<T>::product(size_t l) const {
  const ForwardLayer<T>& layer = layers_[l];
  cpu::GemmArgs<T> g{};
  g.M = rows_, g.N = layer.out, g.K = layer.in;
  if (l == 0) {
    g.a = x_, g.a_row = ld_x_;
  } else if (layers_[l - 1].dropped) {
    g.a = layers_[l - 1].dropped, g.a_row = layer.in;
  } else {
    g.a = layers_[l - 1].y, g.a_row = layers_[l - 1].ld_y;
  }
  g.a_col = 1;
  g.b = layer.weight, g.b_row = 1, g.b_col = layer.ld_weight;
  g.c = layer.z ? layer.z : layer.y, g.ldc = layer.z ? layer.out : layer.ld_y;
  g.bias = layer.bias;
  g.activation = layer.activation;
  if (layer.z) g.activated = layer.y, g.ld_activated = layer.ld_y;
  return g;
}

template <class T>
void StackForward<T>::run_part(size_t l, Range m, Range n, T* workspace) const {
  const ForwardLayer<T>& layer = layers_[l];
  kernels_.gemm(product(l), m, n, workspace);
  if constexpr (sizeof(T) > sizeof(BFloat16)) {
    if (!layer.dropped) return;
    kernels_.dropout({layer.dropout.probability, layer.dropout.seed, layer.y, layer.ld_y,
                      layer.dropped, layer.out},
                     m, n);
  }
}

template <class T>
void StackForward<T>::run(int phase, int thread, T* workspace, T*) const {
  if (by_rows_) {
    const Range m = part_of(rows_, 1, threads_, thread);
    for (size_t l = 0; l < layers_.size(); ++l) {
      run_part(l, m, {0, layers_[l].out}, workspace);
    }
    return;
  }
  run_part_of_grid(kernels_, rows_, layers_[phase].out, thread, threads_,
                   [&](Range m, Range n) { run_part(phase, m, n, workspace); });
}

template class StackForward<float>;
template class StackForward<double>;
template class StackForward<BFloat16>;

}  // namespace mlp_ext::step
