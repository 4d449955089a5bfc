#include "stack_segment.h"

#include <utility>

namespace mlp_ext::step {

namespace {

template <class T>
class StackSegment final : public Segment<T> {
 public:
  StackSegment(const cpu::ComputeKernels<T>& kernels, std::span<const TrainLayer<T>> layers,
               std::span<const LayerBuffers<T>> buffers, int64_t rows, const T* dy, T* dx)
      : forward_(kernels, nullptr, 0, rows, forward_layers(layers, buffers)) {
    for (const auto& layer : layers) places_.push_back(layer.dropout_place);
    while (lowest_ < layers.size() && !dx && !buffers[lowest_].dw && !buffers[lowest_].db) {
      ++lowest_;
    }
    if (lowest_ == layers.size()) return;
    backward_.emplace(kernels, dy, layers.back().out, rows,
                      backward_layers(layers, buffers, lowest_), dx);
  }

  void set_input(const T* x, int64_t ld) override {
    forward_.set_input(x, ld);
    if (backward_ && lowest_ == 0) backward_->set_input(x, ld);
  }
  void set_seed(uint64_t seed) override {
    for (size_t l = 0; l < places_.size(); ++l) {
      const uint64_t own = dropout_seed(seed, places_[l]);
      forward_.set_seed(l, own);
      if (backward_ && l >= lowest_) backward_->set_seed(l - lowest_, own);
    }
  }

  int64_t work() const override { return forward_.work() + (backward_ ? backward_->work() : 0); }
  void cut_for(int threads) override {
    forward_.cut_for(threads);
    if (backward_) backward_->cut_for(threads);
  }
  int forward_phases() const override { return forward_.phases(); }
  bool forward_is_local() const override { return forward_.cut_by_rows(); }
  bool backward_is_local() const override { return backward_ && backward_->cut_by_rows(); }
  int backward_phases() const override {
    if (!backward_) return 0;
    return backward_->cut_by_rows() ? 1 : backward_->phases();
  }
  int64_t partials() const override { return backward_ ? backward_->shared_workspace() : 0; }

  void forward(int phase, int thread, T* workspace) override {
    forward_.run(phase, thread, workspace);
  }
  void backward(int phase, int thread, T* workspace, T* partials) override {
    backward_->run(phase, thread, workspace, partials);
  }
  void add_partials(int thread, const T* partials) const override {
    backward_->add_partials(thread, partials);
  }

 private:
  static std::vector<ForwardLayer<T>> forward_layers(std::span<const TrainLayer<T>> layers,
                                                     std::span<const LayerBuffers<T>> buffers) {
    std::vector<ForwardLayer<T>> result;
    for (size_t l = 0; l < layers.size(); ++l) {
      const TrainLayer<T>& layer = layers[l];
      result.push_back({layer.in, layer.out, layer.weight, layer.in, layer.bias, layer.activation,
                        buffers[l].y, layer.out, buffers[l].z, buffers[l].dropped,
                        Dropout{layer.dropout, 0}});
    }
    return result;
  }

  // From the lowest layer with a gradient to give, as StackBackward takes them.
  static std::vector<BackwardLayer<T>> backward_layers(std::span<const TrainLayer<T>> layers,
                                                       std::span<const LayerBuffers<T>> buffers,
                                                       size_t lowest) {
    std::vector<BackwardLayer<T>> result;
    for (size_t l = lowest; l < layers.size(); ++l) {
      const TrainLayer<T>& layer = layers[l];
      BackwardLayer<T> b{};
      b.in = layer.in, b.out = layer.out;
      b.weight = layer.weight, b.ld_weight = layer.in;
      if (l > 0) b.x = buffers[l - 1].output(), b.ld_x = layer.in;
      b.activation = layer.activation;
      if (layer.activation != Activation::none) {
        b.saved = saves_input(layer.activation) ? buffers[l].z : buffers[l].y;
        b.ld_saved = layer.out;
      }
      b.dz = buffers[l].dz;
      b.dw = buffers[l].dw, b.db = buffers[l].db;
      b.dropout = {layer.dropout, 0};
      result.push_back(b);
    }
    return result;
  }

  std::vector<int> places_;  // of the Dropouts
  size_t lowest_ = 0;        // lowest_: the first layer of the run that backward visits
  StackForward<T> forward_;
  std::optional<StackBackward<T>> backward_;
};

}  // namespace

template <class T>
std::unique_ptr<Segment<T>> make_stack_segment(const cpu::ComputeKernels<T>& kernels,
                                               std::span<const TrainLayer<T>> layers,
                                               std::span<const LayerBuffers<T>> buffers,
                                               int64_t rows, const T* dy, T* dx) {
  return std::make_unique<StackSegment<T>>(kernels, layers, buffers, rows, dy, dx);
}

template std::unique_ptr<Segment<float>> make_stack_segment(const cpu::ComputeKernels<float>&,
                                                            std::span<const TrainLayer<float>>,
                                                            std::span<const LayerBuffers<float>>,
                                                            int64_t, const float*, float*);
template std::unique_ptr<Segment<double>> make_stack_segment(const cpu::ComputeKernels<double>&,
                                                             std::span<const TrainLayer<double>>,
                                                             std::span<const LayerBuffers<double>>,
                                                             int64_t, const double*, double*);

}  // namespace mlp_ext::step
