#include "train_step.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "bf16_segment.h"
#include "norm_segment.h"
#include "stack_segment.h"

namespace mlp_ext::step {

template <class T>
TrainStep<T>::TrainStep(const cpu::KernelTable& table, bool bf16, std::vector<TrainLayer<T>> layers,
                        std::vector<Update<T>> updates, double max_norm, bool gathers,
                        int processes, Arena<T>& arena)
    : table_(table),
      kernels_(cpu::compute_kernels<T>(table)),
      optimizer_(cpu::optimizer_kernels<T>(table)),
      bf16_(bf16 && table.bf16),
      layers_(std::move(layers)),
      updates_(std::move(updates)),
      max_norm_(max_norm),
      gathers_(gathers),
      processes_(processes),
      arena_(arena) {
  const auto wants = [](const TrainLayer<T>& l) {
    return l.wants_weight_grad || l.wants_bias_grad;
  };
  while (lowest_ < layers_.size() && !wants(layers_[lowest_])) ++lowest_;
}

template <class T>
int64_t TrainStep<T>::workspace() const {
  const int64_t pairs = bf16_ ? ceil_div(table_.bf16->gemm_workspace, sizeof(T) / 2) : 0;
  return std::max(kernels_.gemm_workspace, pairs);
}

template <class T>
auto TrainStep<T>::find_runs() const -> std::vector<Run> {
  std::vector<Run> result;
  for (size_t l = 0; l < layers_.size(); ++l) {
    const bool joins =
        l > 0 && layers_[l].kind == LayerKind::kLinear && layers_[l - 1].kind == LayerKind::kLinear;
    if (joins) {
      ++result.back().end;
    } else {
      result.push_back({l, l + 1});
    }
  }
  if constexpr (std::is_same_v<T, float>) {
    for (Run& run : result) {
      run.bf16 = bf16_ && layers_[run.first].kind == LayerKind::kLinear &&
                 has_bf16_products(table_, {&layers_[run.first], run.end - run.first}, rows_);
    }
  }
  return result;
}

template <class T>
void TrainStep<T>::place_gradients(Placer<T>& place) {
  const int64_t begin = place.used();
  T* const notes = place(processes_ > 1, kNotes);
  for (size_t l = 0; l < layers_.size(); ++l) {
    const TrainLayer<T>& layer = layers_[l];
    const int64_t columns = layer.kind == LayerKind::kLinear ? layer.in : 1;
    buffers_[l].dw = place(layer.wants_weight_grad, layer.out * columns);
    buffers_[l].db = place(layer.wants_bias_grad, layer.out);
  }
  exchange_ = {notes, notes ? size_t(place.used() - begin) : 0};
}

template <class T>
int64_t TrainStep<T>::place_buffers(T* base) {
  Placer<T> place(base);
  gathered_ = place(gathers_, rows_ * layers_[0].in);
  buffers_.assign(layers_.size(), {});
  place_gradients(place);
  for (Run& run : runs_) {
    if constexpr (std::is_same_v<T, float>) {
      const std::span<const TrainLayer<T>> layers{&layers_[run.first], run.end - run.first};
      run.memory = place(run.bf16, run.bf16 ? bf16_segment_memory(layers, rows_) : 0);
    }
    for (size_t l = run.first; l < run.end; ++l) {
      const TrainLayer<T>& layer = layers_[l];
      LayerBuffers<T>& b = buffers_[l];
      const int64_t elements = rows_ * layer.out;
      const bool is_linear = layer.kind == LayerKind::kLinear;
      const bool is_map = layer.kind == LayerKind::kMap, is_last = l + 1 == run.end;
      const bool activated = layer.activation != Activation::none;
      const bool in_backward = l >= lowest_;
      b.z = place(activated && saves_input(layer.activation) && !is_map && !run.bf16, elements);
      b.y = place((activated || !is_map) && (is_last || !run.bf16), elements);
      b.dropped = place(layer.dropout > 0, elements);
      b.dz = place(is_linear && in_backward && (activated || !is_last) && !run.bf16, elements);
      b.dy = place(is_last && (in_backward || l + 1 == layers_.size()), elements);
      // The input's gradient of a batch norm is made from those of its parameters.
      const bool sums = in_backward && layer.has_batch_statistics();
      if (sums && !layer.wants_weight_grad) b.dw = place(true, layer.out);
      if (sums && !layer.wants_bias_grad) b.db = place(true, layer.out);
      const bool is_batch_norm = layer.kind == LayerKind::kBatchNorm;
      const bool is_norm = is_batch_norm || layer.kind == LayerKind::kLayerNorm;
      b.mean = place(is_norm, is_batch_norm ? layer.out : rows_);
      b.rstd = place(is_norm, is_batch_norm ? layer.out : rows_);
      b.variance = place(layer.has_batch_statistics(), layer.out);
    }
  }
  return place.used();
}

template <class T>
std::unique_ptr<Segment<T>> TrainStep<T>::make_segment(const Run& run, T* dy, T* dx) const {
  const std::span<const TrainLayer<T>> layers{&layers_[run.first], run.end - run.first};
  const std::span<const LayerBuffers<T>> buffers{&buffers_[run.first], run.end - run.first};
  if (layers[0].kind != LayerKind::kLinear) {
    return make_norm_segment<T>(kernels_, layers[0], buffers[0], rows_, dy, dx);
  }
  if constexpr (std::is_same_v<T, float>) {
    if (run.bf16) return make_bf16_segment(table_, layers, buffers, rows_, dy, dx, run.memory);
  }
  return make_stack_segment<T>(kernels_, layers, buffers, rows_, dy, dx);
}

template <class T>
void TrainStep<T>::lay_out(int64_t rows) {
  if (rows == rows_) return;
  rows_ = rows;
  threads_ = 0;
  runs_ = find_runs();
  const int64_t elements = place_buffers(nullptr);
  rows_ = 0;
  T* const memory = arena_.reserve(elements);
  rows_ = rows;
  place_buffers(memory);
  std::fill(exchange_.begin(), exchange_.end(), T(0));  // what lies between the gradients is sent

  segments_.clear();
  const T* input = gathered_;
  work_ = 0;
  for (const Run& run : runs_) {
    T* const dx = run.first > lowest_ ? buffers_[run.first - 1].dy : nullptr;
    segments_.push_back(make_segment(run, buffers_[run.end - 1].dy, dx));
    if (input) segments_.back()->set_input(input, layers_[run.first].in);
    input = buffers_[run.end - 1].output();
    work_ += segments_.back()->work();
  }
  for (const Update<T>& update : updates_) work_ += update.size / kElementsPerWork;
}

template <class T>
void TrainStep<T>::set_input(const T* x, int64_t ld) {
  segments_.front()->set_input(x, ld);
}

template <class T>
void TrainStep<T>::set_seed(uint64_t seed) {
  for (const auto& segment : segments_) segment->set_seed(seed);
}

template <class T>
void TrainStep<T>::prepare() {
  for (const auto& segment : segments_) segment->prepare();
}

template <class T>
void TrainStep<T>::add_job(Job job, bool local) {
  if (jobs_.empty() || !local || !last_is_local_) stages_.push_back(jobs_.size());
  last_is_local_ = local;
  jobs_.push_back(job);
}

template <class T>
void TrainStep<T>::cut_for(int threads) {
  if (threads == threads_) return;
  threads_ = threads;
  loss_sums_.assign(threads, 0);
  squares_.assign(threads, 0);
  for (const auto& segment : segments_) segment->cut_for(threads);
  jobs_.clear();
  stages_.clear();
  partials_.clear();
  shared_ = 0;
  if (gathers_) add_job({Kind::kGather, 0, 0}, true);
  for (size_t s = 0; s < segments_.size(); ++s) {
    for (int p = 0; p < segments_[s]->forward_phases(); ++p) {
      add_job({Kind::kForward, s, p}, segments_[s]->forward_is_local());
    }
    partials_.push_back(std::exchange(shared_, shared_ + segments_[s]->partials()));
  }
  if (host_loss_) {
    last_is_local_ = false;  // all of the output has to be there, and all of its gradient
    loss_phase_ = static_cast<int>(stages_.size());
  } else {
    add_job({Kind::kLoss, 0, 0}, true);
  }
  for (size_t s = segments_.size(); s-- > 0;) {
    for (int p = 0; p < segments_[s]->backward_phases(); ++p) {
      add_job({Kind::kBackward, s, p}, segments_[s]->backward_is_local());
    }
  }
  last_is_local_ = false;  // the sums of all threads have to be there
  for (size_t s = 0; s < segments_.size(); ++s) {
    if (segments_[s]->partials() > 0) add_job({Kind::kAdd, s, 0}, true);
  }
  gradient_phases_ = static_cast<int>(stages_.size());
  if (max_norm_ > 0) add_job({Kind::kNorm, 0, 0}, false);
  add_job({Kind::kUpdate, 0, 0}, false);
  stages_.push_back(jobs_.size());
}

template <class T>
void TrainStep<T>::run_job(const Job& job, int thread, T* workspace, T* shared) {
  T* const partials = shared ? shared + partials_[job.segment] : nullptr;
  Segment<T>& segment = *segments_[job.segment];
  switch (job.kind) {
    case Kind::kGather:
      return gather(thread);
    case Kind::kForward:
      return segment.forward(job.phase, thread, workspace);
    case Kind::kLoss:
      return run_loss(thread);
    case Kind::kBackward:
      return segment.backward(job.phase, thread, workspace, partials);
    case Kind::kAdd:
      return segment.add_partials(thread, partials);
    case Kind::kNorm:
      return measure(thread);
    case Kind::kUpdate:
      return update(thread);
  }
}

template <class T>
void TrainStep<T>::run(int phase, int thread, T* workspace, T* shared) {
  for (size_t j = stages_[phase]; j < stages_[phase + 1]; ++j) {
    run_job(jobs_[j], thread, workspace, shared);
  }
}

template class TrainStep<float>;
template class TrainStep<double>;

}  // namespace mlp_ext::step
