#include "bf16_segment.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "stack_backward.h"
#include "stack_forward.h"

namespace mlp_ext::step {

namespace {

using Layers = std::span<const TrainLayer<float>>;
using Buffers = std::span<const LayerBuffers<float>>;

struct Bf16Layer {
  BFloat16 *weight, *bias, *z, *y, *dz, *dw, *db;
};

struct Bf16Memory {
  BFloat16 *x, *dy, *dx;
  std::vector<Bf16Layer> layers;
  int64_t elements;

  Bf16Memory(Layers of, int64_t rows, BFloat16* base) {
    Placer<BFloat16> place(base);
    x = place(true, rows * of.front().in);
    dx = place(true, rows * of.front().in);
    dy = place(true, rows * of.back().out);
    for (const TrainLayer<float>& layer : of) {
      const bool activated = layer.activation != Activation::none;
      const int64_t weights = layer.out * layer.in, elements = rows * layer.out;
      Bf16Layer l{};
      l.weight = place(true, weights);
      l.bias = place(layer.bias != nullptr, layer.out);
      l.z = place(activated && saves_input(layer.activation), elements);
      l.y = place(true, elements);
      l.dz = place(activated || &layer != &of.back(), elements);
      l.dw = place(layer.wants_weight_grad, weights);
      l.db = place(layer.wants_bias_grad, layer.out);
      layers.push_back(l);
    }
    elements = place.used();
  }
};

class Bf16Segment final : public Segment<float> {
 public:
  Bf16Segment(const cpu::KernelTable& table, Layers layers, Buffers buffers, int64_t rows,
              const float* dy, float* dx, float* memory)
      : table_(table),
        layers_(layers.begin(), layers.end()),
        buffers_(buffers.begin(), buffers.end()),
        rows_(rows),
        dy_(dy),
        dx_(dx),
        memory_(layers, rows, reinterpret_cast<BFloat16*>(memory)),
        forward_(*table.bf16, memory_.x, layers.front().in, rows, forward_layers()) {
    size_t lowest = 0;
    while (lowest < layers_.size() && !dx && !buffers_[lowest].dw && !buffers_[lowest].db) {
      ++lowest;
    }
    if (lowest == layers_.size()) return;
    backward_.emplace(*table.bf16, memory_.dy, layers_.back().out, rows, backward_layers(lowest),
                      dx ? memory_.dx : nullptr);
  }

  void set_input(const float* x, int64_t ld) override { x_ = x, ld_x_ = ld; }
  void set_seed(uint64_t) override {}

  int64_t work() const override { return forward_.work() + (backward_ ? backward_->work() : 0); }
  void cut_for(int threads) override {
    threads_ = threads;
    forward_.cut_for(threads);
    if (backward_) backward_->cut_for(threads);
  }
  // One more before and one more after: what is converted is all there before it is read.
  int forward_phases() const override { return forward_.phases() + 2; }
  int backward_phases() const override { return backward_ ? backward_->phases() + 2 : 0; }
  bool forward_is_local() const override { return false; }
  bool backward_is_local() const override { return false; }
  int64_t partials() const override { return 0; }
  void add_partials(int, const float*) const override {}

  void forward(int phase, int thread, float* workspace) override {
    if (phase == 0) return round_operands(thread);
    if (phase <= forward_.phases()) {
      return forward_.run(phase - 1, thread, reinterpret_cast<BFloat16*>(workspace));
    }
    widen(memory_.layers.back().y, buffers_.back().y, rows_ * layers_.back().out, thread);
  }

  void backward(int phase, int thread, float* workspace, float*) override {
    if (phase == 0) return round(dy_, memory_.dy, rows_ * layers_.back().out, thread);
    if (phase <= backward_->phases()) {
      return backward_->run(phase - 1, thread, reinterpret_cast<BFloat16*>(workspace), nullptr);
    }
    for (size_t l = 0; l < layers_.size(); ++l) {
      const TrainLayer<float>& layer = layers_[l];
      const Bf16Layer& own = memory_.layers[l];
      if (buffers_[l].dw) widen(own.dw, buffers_[l].dw, layer.out * layer.in, thread);
      if (buffers_[l].db) widen(own.db, buffers_[l].db, layer.out, thread);
    }
    if (dx_) widen(memory_.dx, dx_, rows_ * layers_.front().in, thread);
  }

 private:
  std::vector<ForwardLayer<BFloat16>> forward_layers() const {
    std::vector<ForwardLayer<BFloat16>> result;
    for (size_t l = 0; l < layers_.size(); ++l) {
      const TrainLayer<float>& layer = layers_[l];
      const Bf16Layer& own = memory_.layers[l];
      result.push_back({layer.in, layer.out, own.weight, layer.in, own.bias, layer.activation,
                        own.y, layer.out, own.z});
    }
    return result;
  }

  std::vector<BackwardLayer<BFloat16>> backward_layers(size_t lowest) const {
    std::vector<BackwardLayer<BFloat16>> result;
    for (size_t l = lowest; l < layers_.size(); ++l) {
      const TrainLayer<float>& layer = layers_[l];
      const Bf16Layer& own = memory_.layers[l];
      BackwardLayer<BFloat16> b{};
      b.in = layer.in, b.out = layer.out;
      b.weight = own.weight, b.ld_weight = layer.in;
      b.x = l > 0 ? memory_.layers[l - 1].y : memory_.x, b.ld_x = layer.in;
      b.activation = layer.activation;
      if (layer.activation != Activation::none) {
        b.saved = saves_input(layer.activation) ? own.z : own.y;
        b.ld_saved = layer.out;
      }
      b.dz = own.dz;
      b.dw = buffers_[l].dw ? own.dw : nullptr;
      b.db = buffers_[l].db ? own.db : nullptr;
      result.push_back(b);
    }
    return result;
  }

  void round_operands(int thread) const {
    for (size_t l = 0; l < layers_.size(); ++l) {
      const TrainLayer<float>& layer = layers_[l];
      const Bf16Layer& own = memory_.layers[l];
      round(layer.weight, own.weight, layer.out * layer.in, thread);
      if (layer.bias) round(layer.bias, own.bias, layer.out, thread);
    }
    const int64_t in = layers_.front().in;
    const Range rows = part_of(rows_, 1, threads_, thread);
    for (int64_t m = rows.begin; m < rows.end; ++m) {
      table_.to_bf16(x_ + m * ld_x_, memory_.x + m * in, in);
    }
  }

  void round(const float* from, BFloat16* to, int64_t n, int thread) const {
    const Range part = part_of(n, 64, threads_, thread);
    if (part.size() > 0) table_.to_bf16(from + part.begin, to + part.begin, part.size());
  }
  void widen(const BFloat16* from, float* to, int64_t n, int thread) const {
    const Range part = part_of(n, 64, threads_, thread);
    if (part.size() > 0) table_.to_f32(from + part.begin, to + part.begin, part.size());
  }

  const cpu::KernelTable& table_;
  std::vector<TrainLayer<float>> layers_;
  std::vector<LayerBuffers<float>> buffers_;
  int64_t rows_;
  const float* dy_;
  float* dx_;
  const float* x_ = nullptr;
  int64_t ld_x_ = 0;
  int threads_ = 1;
  Bf16Memory memory_;
  StackForward<BFloat16> forward_;
  std::optional<StackBackward<BFloat16>> backward_;
};

}  // namespace

bool has_bf16_products(const cpu::KernelTable& table, Layers layers, int64_t rows) {
  int64_t depth = rows;
  for (const auto& layer : layers) depth = std::max({depth, layer.in, layer.out});
  return table.bf16 && depth <= table.bf16->most_depth;
}

int64_t bf16_segment_memory(Layers layers, int64_t rows) {
  return ceil_div(Bf16Memory(layers, rows, nullptr).elements, 2);
}

std::unique_ptr<Segment<float>> make_bf16_segment(const cpu::KernelTable& table, Layers layers,
                                                  Buffers buffers, int64_t rows, const float* dy,
                                                  float* dx, float* memory) {
  return std::make_unique<Bf16Segment>(table, layers, buffers, rows, dy, dx, memory);
}

}  // namespace mlp_ext::step
