#include "train_step.h"

#include <cmath>
#include <utility>

namespace mlp_ext::step {

namespace {

// Of one layer's Dropout. Both halves of the seed must differ between layers: with seed + l, the
// mask of a layer is that of the layer below with neighbours exchanged.
uint64_t layer_seed(uint64_t seed, size_t layer) {
  uint64_t x = seed + (layer + 1) * 0x9e3779b97f4a7c15U;  // splitmix64
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31);
}

template <class T>
std::vector<ForwardLayer<T>> forward_layers(const std::vector<TrainLayer<T>>& layers,
                                            const TrainBuffers<T>& buffers, uint64_t seed) {
  std::vector<ForwardLayer<T>> result;
  for (size_t l = 0; l < layers.size(); ++l) {
    const TrainLayer<T>& layer = layers[l];
    result.push_back({layer.in, layer.out, layer.weight, layer.in, layer.bias, layer.activation,
                      buffers.y[l], layer.out, buffers.z[l], buffers.dropped[l],
                      Dropout{layer.dropout, layer_seed(seed, l)}});
  }
  return result;
}

// From the lowest layer with a gradient to give, as StackBackward takes them.
template <class T>
std::vector<BackwardLayer<T>> backward_layers(const std::vector<TrainLayer<T>>& layers,
                                              const TrainBuffers<T>& buffers, const T* x,
                                              int64_t ld_x, uint64_t seed) {
  size_t lowest = 0;
  while (lowest < layers.size() && !buffers.dw[lowest] && !buffers.db[lowest]) ++lowest;
  std::vector<BackwardLayer<T>> result;
  for (size_t l = lowest; l < layers.size(); ++l) {
    const TrainLayer<T>& layer = layers[l];
    BackwardLayer<T> b{};
    b.in = layer.in, b.out = layer.out;
    b.weight = layer.weight, b.ld_weight = layer.in;
    b.x = x, b.ld_x = ld_x;
    if (l > 0) b.x = buffers.dropped[l - 1] ? buffers.dropped[l - 1] : buffers.y[l - 1];
    if (l > 0) b.ld_x = layer.in;
    b.activation = layer.activation;
    if (layer.activation != Activation::none) {
      b.saved = saves_input(layer.activation) ? buffers.z[l] : buffers.y[l];
      b.ld_saved = layer.out;
    }
    b.dz = buffers.dz[l];
    b.dw = buffers.dw[l], b.db = buffers.db[l];
    b.dropout = {layer.dropout, layer_seed(seed, l)};
    result.push_back(b);
  }
  return result;
}

}  // namespace

template <class T>
TrainBuffers<T>::TrainBuffers(const std::vector<TrainLayer<T>>& layers, int64_t rows, T* base,
                              int64_t capacity) {
  elements = 0;
  const auto lay = [&](bool wanted, int64_t n) -> T* {
    if (!wanted) return nullptr;
    const int64_t begin = elements;
    elements += ceil_div(n, 16) * 16;
    return elements <= capacity ? base + begin : nullptr;
  };
  const size_t last = layers.size() - 1;
  for (size_t l = 0; l <= last; ++l) {
    const TrainLayer<T>& layer = layers[l];
    const bool activated = layer.activation != Activation::none;
    y.push_back(lay(true, rows * layer.out));
    z.push_back(lay(activated && saves_input(layer.activation), rows * layer.out));
    dropped.push_back(lay(layer.dropout > 0, rows * layer.out));
    dz.push_back(lay(l < last || activated, rows * layer.out));
    dw.push_back(lay(layer.wants_weight_grad, layer.out * layer.in));
    db.push_back(lay(layer.wants_bias_grad, layer.out));
  }
  loss_grad = lay(true, rows * layers[last].out);
}

template <class T>
TrainStep<T>::TrainStep(const cpu::ComputeKernels<T>& kernels,
                        const cpu::OptimizerKernels<T>& optimizer,
                        std::vector<TrainLayer<T>> layers, const TrainBuffers<T>& buffers,
                        const T* x, int64_t ld_x, int64_t rows, TrainLoss<T> loss,
                        std::vector<Update<T>> updates, double max_norm, uint64_t seed)
    : kernels_(kernels),
      optimizer_(optimizer),
      rows_(rows),
      forward_(kernels, x, ld_x, rows, forward_layers(layers, buffers, seed)),
      backward_(kernels, buffers.loss_grad, layers.back().out, rows,
                backward_layers(layers, buffers, x, ld_x, seed), nullptr),
      loss_(loss),
      updates_(std::move(updates)),
      max_norm_(max_norm) {}

template <class T>
int64_t TrainStep<T>::work() const {
  int64_t elements = 0;
  for (const auto& update : updates_) elements += update.size;
  return forward_.work() + backward_.work() + elements / kElementsPerWork;
}

template <class T>
void TrainStep<T>::cut_for(int threads) {
  threads_ = threads;
  loss_sums_.assign(threads, 0);
  squares_.assign(threads, 0);
  forward_.cut_for(threads);
  backward_.cut_for(threads);
  stages_.clear();
  int first_backward = 0;
  if (forward_.cut_by_rows() && backward_.cut_by_rows()) {
    stages_.push_back({Kind::kRows, 0});
    first_backward = 1;
  } else {
    for (int p = 0; p < forward_.phases(); ++p) stages_.push_back({Kind::kForward, p});
    stages_.push_back({Kind::kLoss, 0});
  }
  for (int p = first_backward; p < backward_.phases(); ++p) {
    stages_.push_back({Kind::kBackward, p});
  }
  if (max_norm_ > 0) stages_.push_back({Kind::kNorm, 0});
  stages_.push_back({Kind::kUpdate, 0});
}

template <class T>
void TrainStep<T>::run_loss(int thread) {
  const Range rows = part_of(rows_, 1, threads_, thread);
  loss_sums_[thread] = loss_.is_cross_entropy ? kernels_.cross_entropy(loss_.cross_entropy, rows)
                                              : kernels_.elementwise_loss(loss_.elementwise, rows);
}

template <class T>
void TrainStep<T>::measure(int thread) {
  double sum = 0;
  for_share_of_elements(
      updates_, [](const Update<T>& u) { return u.size; }, thread, threads_,
      [&](const Update<T>& u, int64_t first, int64_t n) {
        sum += kernels_.sum_of_squares(u.grad + first, n);
      });
  squares_[thread] = sum;
}

// As torch.nn.utils.clip_grad_norm_: a NaN norm makes every gradient NaN.
template <class T>
double TrainStep<T>::grad_scale() const {
  if (max_norm_ <= 0) return 1;
  double squares = 0;
  for (const double share : squares_) squares += share;
  const double wanted = max_norm_ / (std::sqrt(squares) + 1e-6);
  return wanted > 1 ? 1 : wanted;
}

template <class T>
void TrainStep<T>::update(int thread) {
  const double scale = grad_scale();
  for_share_of_elements(
      updates_, [](const Update<T>& u) { return u.size; }, thread, threads_,
      [&](const Update<T>& u, int64_t first, int64_t n) {
        if (!u.param) return;
        AnyRuleArgs args = u.args;
        common_options(args).grad_scale = scale;
        run_rule(optimizer_, args, u.param, u.grad, u.states, first, n);
      });
}

template <class T>
void TrainStep<T>::run(int phase, int thread, T* workspace, T* shared) {
  const Stage stage = stages_[phase];
  switch (stage.kind) {
    case Kind::kRows:
      forward_.run(0, thread, workspace);
      run_loss(thread);
      return backward_.run(0, thread, workspace, shared);
    case Kind::kForward:
      return forward_.run(stage.phase, thread, workspace);
    case Kind::kLoss:
      return run_loss(thread);
    case Kind::kBackward:
      return backward_.run(stage.phase, thread, workspace, shared);
    case Kind::kNorm:
      return measure(thread);
    case Kind::kUpdate:
      return update(thread);
  }
}

template <class T>
double TrainStep<T>::loss() const {
  double sum = 0;
  for (const double share : loss_sums_) sum += share;
  return sum * loss_.result_scale;
}

template struct TrainBuffers<float>;
template struct TrainBuffers<double>;
template class TrainStep<float>;
template class TrainStep<double>;

}  // namespace mlp_ext::step
