#include "stack_backward.h"

#include <utility>

namespace mlp_ext::step {

namespace {

// What the partial sums of one layer take; a multiple of a cache line, so that no two threads write
// to one.
int64_t padded(int64_t elements) { return ceil_div(elements, 16) * 16; }

}  // namespace

template <class T>
StackBackward<T>::StackBackward(const cpu::ComputeKernels<T>& kernels, const T* dy, int64_t ld_dy,
                                int64_t rows, std::vector<BackwardLayer<T>> layers, T* dx)
    : kernels_(kernels), dy_(dy), ld_dy_(ld_dy), rows_(rows), layers_(std::move(layers)), dx_(dx) {
  for (const auto& layer : layers_) {
    if (layer.dw) partial_ += padded(layer.out * layer.in);
    if (layer.db) partial_ += padded(layer.out);
  }
}

template <class T>
int64_t StackBackward<T>::work() const {
  int64_t sum = 0;
  for (size_t l = 0; l < layers_.size(); ++l) {
    const int64_t product = gemm_work(rows_, layers_[l].out, layers_[l].in);
    sum += product * (int(layers_[l].dw != nullptr) + int(passes_down(l)));
    if (layers_[l].db) sum += rows_ * layers_[l].out / kTouchedElementsPerWork;
  }
  return sum;
}

template <class T>
void StackBackward<T>::cut_for(int threads) {
  threads_ = threads;
  // Sums that are made apart must not be rounded to 16 bits before they are added.
  constexpr bool kAdds = sizeof(T) > sizeof(BFloat16);
  by_rows_ = threads == 1 || (kAdds && better_by_rows(rows_, layers_, threads));
}

template <class T>
int64_t StackBackward<T>::shared_workspace() const {
  return by_rows_ ? (threads_ - 1) * partial_ : 0;
}

template <class T>
int StackBackward<T>::phases() const {
  if (by_rows_) return threads_ > 1 && partial_ > 0 ? 2 : 1;
  return static_cast<int>(layers_.size()) + (layers_.back().dz ? 1 : 0);
}

template <class T>
typename StackBackward<T>::Gradient StackBackward<T>::gradient(size_t l) const {
  if (layers_[l].dz) return {layers_[l].dz, layers_[l].out};
  return {dy_, ld_dy_};
}

// dz of the top layer, and db with it if it is not null.
template <class T>
void StackBackward<T>::differentiate_top(Range rows, Range columns, T* db) const {
  const BackwardLayer<T>& top = layers_.back();
  cpu::ActivationBackwardArgs<T> p{};
  p.rows = rows.size();
  p.activation = top.activation;
  p.dy = dy_ + rows.begin * ld_dy_, p.ld_dy = ld_dy_;
  p.saved = top.saved + rows.begin * top.ld_saved, p.ld_saved = top.ld_saved;
  p.dz = top.dz + rows.begin * top.out, p.ld_dz = top.out;
  p.sum = db;
  kernels_.activation_backward(p, columns);
}

template <class T>
void StackBackward<T>::sum_columns(size_t l, Range rows, Range columns, T* db) const {
  const Gradient dz = gradient(l);
  cpu::ActivationBackwardArgs<T> p{};
  p.rows = rows.size();
  p.activation = Activation::none;
  p.dy = dz.data + rows.begin * dz.ld, p.ld_dy = dz.ld;
  p.sum = db;
  kernels_.activation_backward(p, columns);
}

// dW = dZ^T X over some of the rows.
template <class T>
cpu::GemmArgs<T> StackBackward<T>::weight_product(size_t l, Range rows, T* dw) const {
  const BackwardLayer<T>& layer = layers_[l];
  const Gradient dz = gradient(l);
  cpu::GemmArgs<T> g{};
  g.M = layer.out, g.N = layer.in, g.K = rows.size();
  g.a = dz.data + rows.begin * dz.ld, g.a_row = 1, g.a_col = dz.ld;
  g.b = layer.x + rows.begin * layer.ld_x, g.b_row = layer.ld_x, g.b_col = 1;
  g.c = dw, g.ldc = layer.in;
  return g;
}

// dZ below = (dZ W) f'(saved), or dX for the lowest layer.
template <class T>
cpu::GemmArgs<T> StackBackward<T>::input_product(size_t l) const {
  const BackwardLayer<T>& layer = layers_[l];
  const Gradient dz = gradient(l);
  cpu::GemmArgs<T> g{};
  g.M = rows_, g.N = layer.in, g.K = layer.out;
  g.a = dz.data, g.a_row = dz.ld, g.a_col = 1;
  g.b = layer.weight, g.b_row = layer.ld_weight, g.b_col = 1;
  g.c = l > 0 ? layers_[l - 1].dz : dx_, g.ldc = layer.in;
  if (l > 0 && layers_[l - 1].activation != Activation::none) {
    g.activation = layers_[l - 1].activation;
    g.saved = layers_[l - 1].saved, g.ld_saved = layers_[l - 1].ld_saved;
  }
  return g;
}

template <class T>
void StackBackward<T>::run_input_part(size_t l, Range m, Range n, T* workspace) const {
  kernels_.gemm(input_product(l), m, n, workspace);
  if constexpr (sizeof(T) > sizeof(BFloat16)) {
    if (l == 0 || layers_[l - 1].dropout.probability == 0) return;
    const BackwardLayer<T>& below = layers_[l - 1];
    const cpu::DropoutArgs<T> p{
        below.dropout.probability, below.dropout.seed, below.dz, below.out, below.dz, below.out};
    kernels_.dropout(p, m, n);
  }
}

// Everything for one thread's rows. `partial` takes this thread's sums; null for the first thread,
// whose sums go where the result will be.
template <class T>
void StackBackward<T>::run_rows(int thread, T* workspace, T* partial) const {
  const Range rows = part_of(rows_, 1, threads_, thread);
  for (size_t l = layers_.size(); l-- > 0;) {
    const BackwardLayer<T>& layer = layers_[l];
    T *dw = layer.dw, *db = layer.db;
    if (partial && dw) dw = std::exchange(partial, partial + padded(layer.out * layer.in));
    if (partial && db) db = std::exchange(partial, partial + padded(layer.out));
    if (l + 1 == layers_.size() && layer.dz) {
      differentiate_top(rows, {0, layer.out}, db);
    } else if (db) {
      sum_columns(l, rows, {0, layer.out}, db);
    }
    if (dw) {
      const cpu::GemmArgs<T> g = weight_product(l, rows, dw);
      kernels_.gemm(g, {0, g.M}, {0, g.N}, workspace);
    }
    if (passes_down(l)) run_input_part(l, rows, {0, layer.in}, workspace);
  }
}

template <class T>
void StackBackward<T>::add_partials(int thread, const T* shared) const {
  int64_t offset = 0;
  const auto add = [&](T* sum, int64_t n) {
    const Range part = part_of(n, 16, threads_, thread);
    for (int other = 1; other < threads_ && part.size() > 0; ++other) {
      const T* term = shared + (other - 1) * partial_ + offset;
      kernels_.add(sum + part.begin, term + part.begin, part.size());
    }
    offset += padded(n);
  };
  for (size_t l = layers_.size(); l-- > 0;) {
    if (layers_[l].dw) add(layers_[l].dw, layers_[l].out * layers_[l].in);
    if (layers_[l].db) add(layers_[l].db, layers_[l].out);
  }
}

template <class T>
void StackBackward<T>::run_layer(size_t l, int thread, T* workspace) const {
  const BackwardLayer<T>& layer = layers_[l];
  const bool top_did_it = l + 1 == layers_.size() && layer.dz;
  if (layer.db && !top_did_it) {
    const Range columns = part_of(layer.out, kernels_.column_tile, threads_, thread);
    sum_columns(l, {0, rows_}, columns, layer.db);
  }
  if (layer.dw) {
    const cpu::GemmArgs<T> g = weight_product(l, {0, rows_}, layer.dw);
    run_part_of_grid(kernels_, g.M, g.N, thread, threads_,
                     [&](Range m, Range n) { kernels_.gemm(g, m, n, workspace); });
  }
  if (passes_down(l)) {
    run_part_of_grid(kernels_, rows_, layer.in, thread, threads_,
                     [&](Range m, Range n) { run_input_part(l, m, n, workspace); });
  }
}

template <class T>
void StackBackward<T>::run(int phase, int thread, T* workspace, T* shared) const {
  if (by_rows_) {
    if (phase > 0) return add_partials(thread, shared);
    return run_rows(thread, workspace, thread == 0 ? nullptr : shared + (thread - 1) * partial_);
  }
  const BackwardLayer<T>& top = layers_.back();
  const int first = top.dz ? 1 : 0;
  if (phase < first) {
    const Range columns = part_of(top.out, kernels_.column_tile, threads_, thread);
    return differentiate_top({0, rows_}, columns, top.db);
  }
  run_layer(layers_.size() - 1 - (phase - first), thread, workspace);
}

template class StackBackward<float>;
template class StackBackward<double>;
template class StackBackward<BFloat16>;

}  // namespace mlp_ext::step
