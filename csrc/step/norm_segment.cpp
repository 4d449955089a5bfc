#include "norm_segment.h"

#include <cmath>

namespace mlp_ext::step {

namespace {

// Rows that go through all of a segment's kernels before the next ones: they stay in L1 or L2.
constexpr int64_t kRowsAtATime = 16;

// Whoever has the statistics of a column needs all its rows. So with several threads a batch norm
// in training is cut by columns, and all else by rows.
template <class T>
class NormSegment final : public Segment<T> {
 public:
  NormSegment(const cpu::ComputeKernels<T>& kernels, const TrainLayer<T>& layer,
              const LayerBuffers<T>& buffers, int64_t rows, T* dy, T* dx)
      : kernels_(kernels), layer_(layer), buffers_(buffers), rows_(rows), dy_(dy), dx_(dx) {}

  void set_input(const T* x, int64_t ld) override { x_ = x, ld_x_ = ld; }
  void set_seed(uint64_t seed) override { seed_ = dropout_seed(seed, layer_.dropout_place); }

  int64_t work() const override { return 4 * rows_ * layer_.out / kElementsPerWork; }
  void cut_for(int threads) override {
    threads_ = threads;
    by_columns_ = threads > 1 && layer_.has_batch_statistics();
  }
  int forward_phases() const override { return 1; }
  int backward_phases() const override { return wants_backward() ? 1 : 0; }
  bool forward_is_local() const override { return !by_columns_; }
  bool backward_is_local() const override { return !by_columns_; }
  int64_t partials() const override {
    return has_sums() && !by_columns_ ? (threads_ - 1) * partial_size() : 0;
  }

  void prepare() override {
    if (!layer_.fixed_mean) return;
    for (int64_t n = 0; n < layer_.out; ++n) {
      buffers_.mean[n] = layer_.fixed_mean[n];
      buffers_.rstd[n] = T(1) / std::sqrt(layer_.fixed_variance[n] + T(layer_.eps));
    }
  }

  void forward(int, int thread, T*) override {
    const NormArgs args = norm_args();
    const Range rows = rows_of(thread), columns = columns_of(thread);
    if (layer_.has_batch_statistics()) kernels_.norm_statistics(args, columns);
    for (int64_t m = rows.begin; m < rows.end; m += kRowsAtATime) {
      const Range block{m, std::min(rows.end, m + kRowsAtATime)};
      if (layer_.kind == LayerKind::kLayerNorm) kernels_.norm_statistics(args, block);
      if (is_norm()) kernels_.normalize(args, block, columns);
      if (layer_.activation != Activation::none) {
        const T* z = is_norm() ? args.y : x_;
        const int64_t ld_z = is_norm() ? layer_.out : ld_x_;
        kernels_.activation({layer_.activation, z, ld_z, buffers_.y, layer_.out}, block, columns);
      }
      if (buffers_.dropped) drop(activated(), ld_activated(), buffers_.dropped, block, columns);
    }
  }

  void backward(int, int thread, T*, T* partials) override {
    const Range rows = rows_of(thread), columns = columns_of(thread);
    // The gradient of what comes before the activation: in place, or that of the input itself.
    T* const dz = is_norm() ? dy_ : dx_;
    if (buffers_.dropped) drop(dy_, layer_.out, dz, rows, columns);
    if (layer_.activation != Activation::none) {
      differentiate(buffers_.dropped ? dz : dy_, dz, rows, columns);
    }
    if (!is_norm()) return;
    NormArgs args = norm_args();
    if (thread > 0 && !by_columns_ && partials) {
      T* own = partials + (thread - 1) * partial_size();
      if (args.dgamma) args.dgamma = own;
      if (args.dbeta) args.dbeta = own + padded();
    }
    kernels_.norm_parameter_grads(args, rows, columns);
    if (dx_) kernels_.norm_input_grad(args, rows, columns);
  }

  void add_partials(int thread, const T* partials) const override {
    const Range part = part_of(layer_.out, 16, threads_, thread);
    for (int other = 1; other < threads_ && part.size() > 0; ++other) {
      const T* own = partials + (other - 1) * partial_size() + part.begin;
      if (buffers_.dw) kernels_.add(buffers_.dw + part.begin, own, part.size());
      if (buffers_.db) kernels_.add(buffers_.db + part.begin, own + padded(), part.size());
    }
  }

 private:
  using NormArgs = cpu::NormArgs<T>;

  bool is_norm() const { return layer_.kind != LayerKind::kMap; }
  bool has_sums() const { return buffers_.dw || buffers_.db; }
  bool wants_backward() const { return dx_ || has_sums(); }
  int64_t padded() const { return ceil_div(layer_.out, 16) * 16; }
  int64_t partial_size() const { return 2 * padded(); }
  Range rows_of(int thread) const {
    return by_columns_ ? Range{0, rows_} : part_of(rows_, 1, threads_, thread);
  }
  Range columns_of(int thread) const {
    return by_columns_ ? part_of(layer_.out, 16, threads_, thread) : Range{0, layer_.out};
  }
  const T* activated() const { return buffers_.y ? buffers_.y : x_; }
  int64_t ld_activated() const { return buffers_.y ? layer_.out : ld_x_; }

  NormArgs norm_args() const {
    NormArgs p{};
    p.per_row = layer_.kind == LayerKind::kLayerNorm;
    p.constant_statistics = layer_.fixed_mean != nullptr;
    p.rows = rows_, p.columns = layer_.out;
    p.x = x_, p.ld_x = ld_x_;
    p.gamma = layer_.weight, p.beta = layer_.bias;
    p.eps = layer_.eps;
    p.mean = buffers_.mean, p.variance = buffers_.variance, p.rstd = buffers_.rstd;
    p.y = buffers_.z ? buffers_.z : buffers_.y, p.ld_y = layer_.out;
    p.dy = dy_, p.ld_dy = layer_.out;
    p.dx = dx_, p.ld_dx = layer_.out;
    p.dgamma = buffers_.dw, p.dbeta = buffers_.db;
    return p;
  }

  void drop(const T* in, int64_t ld_in, T* out, Range rows, Range columns) const {
    kernels_.dropout({layer_.dropout, seed_, in, ld_in, out, layer_.out}, rows, columns);
  }

  void differentiate(const T* dy, T* dz, Range rows, Range columns) const {
    cpu::ActivationBackwardArgs<T> p{};
    p.rows = rows.size();
    p.activation = layer_.activation;
    p.dy = dy + rows.begin * layer_.out, p.ld_dy = layer_.out;
    p.saved = buffers_.y, p.ld_saved = layer_.out;
    if (saves_input(layer_.activation)) {
      p.saved = is_norm() ? buffers_.z : x_;
      p.ld_saved = is_norm() ? layer_.out : ld_x_;
    }
    p.saved += rows.begin * p.ld_saved;
    p.dz = dz + rows.begin * layer_.out, p.ld_dz = layer_.out;
    kernels_.activation_backward(p, columns);
  }

  const cpu::ComputeKernels<T>& kernels_;
  TrainLayer<T> layer_;
  LayerBuffers<T> buffers_;
  int64_t rows_;
  T *dy_, *dx_;
  const T* x_ = nullptr;
  int64_t ld_x_ = 0;
  uint64_t seed_ = 0;
  int threads_ = 1;
  bool by_columns_ = false;
};

}  // namespace

template <class T>
std::unique_ptr<Segment<T>> make_norm_segment(const cpu::ComputeKernels<T>& kernels,
                                              const TrainLayer<T>& layer,
                                              const LayerBuffers<T>& buffers, int64_t rows, T* dy,
                                              T* dx) {
  return std::make_unique<NormSegment<T>>(kernels, layer, buffers, rows, dy, dx);
}

template std::unique_ptr<Segment<float>> make_norm_segment(const cpu::ComputeKernels<float>&,
                                                           const TrainLayer<float>&,
                                                           const LayerBuffers<float>&, int64_t,
                                                           float*, float*);
template std::unique_ptr<Segment<double>> make_norm_segment(const cpu::ComputeKernels<double>&,
                                                            const TrainLayer<double>&,
                                                            const LayerBuffers<double>&, int64_t,
                                                            double*, double*);

}  // namespace mlp_ext::step
