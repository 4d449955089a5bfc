// A whole training step as work for a team of threads: forward, loss, backward, update.
//
// See stack_forward.h for how a plan is run. Small nets are cut by rows: in the first phase each
// thread takes its rows of the batch through forward, loss and backward into gradients of its own,
// and after one barrier each adds up and updates its share of the parameters. Larger ones are cut
// by layers, with a barrier after each.
#pragma once

#include <cstdint>
#include <vector>

#include "rule_args.h"
#include "stack_backward.h"
#include "stack_forward.h"

namespace mlp_ext::step {

template <class T>
struct TrainLayer {
  int64_t in, out;
  const T* weight;  // (out, in), dense
  const T* bias;    // null: none
  Activation activation;
  double dropout;  // probability, behind the activation; 0: none
  bool wants_weight_grad, wants_bias_grad;
};

// One of the two losses; the other's pointers are null.
template <class T>
struct TrainLoss {
  cpu::CrossEntropyArgs<T> cross_entropy;
  cpu::ElementwiseLossArgs<T> elementwise;
  bool is_cross_entropy;
  double result_scale;  // from the sum over all rows to what the loss returns
};

// One parameter's update. `grad` is where the step leaves the gradient: TrainBuffers' dw or db.
template <class T>
struct Update {
  T* param;  // null: not the optimizer's, only counted in the norm of the gradients
  const T* grad;
  T* states[kMostStates];  // as the optimizer's kernel takes them
  int64_t size;
  AnyRuleArgs args;
};

// Where the buffers of a step lie; made once for a batch size.
template <class T>
struct TrainBuffers {
  std::vector<T*> y, z, dropped, dz;  // of each layer; null where it has none
  std::vector<T*> dw, db;
  T* loss_grad;
  int64_t elements;  // of all of them

  // In `capacity` elements at `base`. If `elements` comes to more, the pointers are of no use.
  TrainBuffers(const std::vector<TrainLayer<T>>& layers, int64_t rows, T* base, int64_t capacity);
};

template <class T>
class TrainStep {
 public:
  using Scalar = T;

  TrainStep(const cpu::ComputeKernels<T>& kernels, const cpu::OptimizerKernels<T>& optimizer,
            std::vector<TrainLayer<T>> layers, const TrainBuffers<T>& buffers, const T* x,
            int64_t ld_x, int64_t rows, TrainLoss<T> loss, std::vector<Update<T>> updates,
            double max_norm, uint64_t seed);

  int64_t work() const;
  void cut_for(int threads);
  const cpu::ComputeKernels<T>& kernels() const { return kernels_; }
  int64_t shared_workspace() const { return backward_.shared_workspace(); }
  int phases() const { return static_cast<int>(stages_.size()); }
  void run(int phase, int thread, T* workspace, T* shared);

  // Once it has run: the loss, and what the gradients were multiplied by to clip their norm.
  double loss() const;
  double grad_scale() const;

 private:
  enum class Kind { kRows, kForward, kLoss, kBackward, kNorm, kUpdate };
  struct Stage {
    Kind kind;
    int phase;
  };

  void run_loss(int thread);
  void measure(int thread);
  void update(int thread);

  const cpu::ComputeKernels<T>& kernels_;
  const cpu::OptimizerKernels<T>& optimizer_;
  int64_t rows_;
  StackForward<T> forward_;
  StackBackward<T> backward_;
  TrainLoss<T> loss_;
  std::vector<Update<T>> updates_;
  double max_norm_;  // 0: no clipping
  int threads_ = 1;
  std::vector<Stage> stages_;
  std::vector<double> loss_sums_, squares_;  // one a thread
};

}  // namespace mlp_ext::step
