// A whole training step as work for a team of threads: forward, loss, backward, update.
//
// The chain of layers falls into segments (train_layer.h): runs of Linear layers, and single
// normalizations. A plan is a list of jobs, each a phase of one segment, the loss, the update:
//
//   gather | forward of each segment | loss | backward of each segment | add | norm | update
//
// cut into stages, with a barrier between two of them. Jobs that work on the rows of their own
// thread alone share a stage. So a small net, all of whose segments are cut by rows, has one stage
// from the input to the gradients, in sums that each thread keeps for itself; then the threads add
// them up and update a share of the parameters each. A large net has a stage a layer.
//
// A plan is laid out for a batch size and run many times: nothing is allocated in a run.
//
// Several processes may run a plan together, each on rows of its own. Between the stages that give
// the gradients and those that use them, norm and update, they add up their exchange().
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "rule_args.h"
#include "train_layer.h"

namespace mlp_ext::step {

// One of the two losses; the other's pointers are null.
template <class T>
struct TrainLoss {
  cpu::CrossEntropyArgs<T> cross_entropy;
  cpu::ElementwiseLossArgs<T> elementwise;
  bool is_cross_entropy;
  double result_scale;  // from the sum over all rows to what the loss returns
};

// One parameter's update.
template <class T>
struct Update {
  size_t layer;
  bool is_bias;
  int64_t size;
  T* param;                // null: not the optimizer's, only counted in the norm of the gradients
  T* states[kMostStates];  // as the optimizer's kernel takes them
  AnyRuleArgs args;
};

// Rows of a larger matrix that are to be the input: row i is row index[i] of `from`.
template <class T>
struct Gather {
  const T* from = nullptr;     // null: nothing to gather
  int64_t ld = 0, stride = 1;  // between rows, and between the elements of one
  const int64_t* index = nullptr;
};

template <class T>
class TrainStep {
 public:
  using Scalar = T;

  // `gathers`: the input comes by set_gather, not by set_input. `arena` is for this plan alone from
  // lay_out on.
  // `bf16`: the products of Linear layers are of bfloat16 numbers, where the table has them.
  // `processes`: how many run the plan together; 1: no exchange().
  TrainStep(const cpu::KernelTable& table, bool bf16, std::vector<TrainLayer<T>> layers,
            std::vector<Update<T>> updates, double max_norm, bool gathers, int processes,
            Arena<T>& arena);

  // Makes ready for batches of `rows` rows, if it is not. std::bad_alloc leaves it as before the
  // first call.
  void lay_out(int64_t rows);
  int64_t rows() const { return rows_; }
  // What the rest of a step reads and writes; good until lay_out is called with another number.
  const T* output() const { return buffers_.back().output(); }
  T* output_grad() const { return buffers_.back().dy; }
  const LayerBuffers<T>& buffers(size_t layer) const { return buffers_[layer]; }
  const T* gradient(const Update<T>& update) const {
    return update.is_bias ? buffers_[update.layer].db : buffers_[update.layer].dw;
  }
  const std::vector<TrainLayer<T>>& layers() const { return layers_; }

  // What is new in each step.
  void set_input(const T* x, int64_t ld);
  void set_gather(const Gather<T>& gather) { gather_ = gather; }
  void set_loss(const TrainLoss<T>& loss) { loss_ = loss; }
  // The caller works the loss out between two phases: from output() to output_grad(), all of it.
  void set_host_loss(bool host_loss) {
    if (std::exchange(host_loss_, host_loss) != host_loss) threads_ = 0;
  }
  void set_seed(uint64_t seed);
  std::vector<Update<T>>& updates() { return updates_; }

  // The plan: see parallel_phases in bindings/parallel.h.
  int64_t work() const { return work_; }
  void cut_for(int threads);
  int64_t workspace() const;
  int64_t shared_workspace() const { return shared_; }
  int phases() const { return static_cast<int>(stages_.size()) - 1; }
  // The first behind a loss of the caller's.
  int loss_phase() const { return loss_phase_; }
  // Those that give the gradients come first.
  int gradient_phases() const { return gradient_phases_; }
  // kNotes elements for the caller's use, then all gradients.
  std::span<T> exchange() const { return exchange_; }
  static constexpr int64_t kNotes = Placer<T>::kLine;
  void run(int phase, int thread, T* workspace, T* shared);
  // Before the first phase.
  void prepare();

  // Once it has run: the loss (unless the caller worked it out), and what the gradients were
  // multiplied by: to average them over the processes, to clip their norm.
  double loss() const;
  double grad_scale() const;

 private:
  enum class Kind { kGather, kForward, kLoss, kBackward, kAdd, kNorm, kUpdate };
  struct Job {
    Kind kind;
    size_t segment;
    int phase;
  };
  struct Run {  // the layers [first, end) of one segment
    size_t first, end;
    bool bf16 = false;  // with products of bfloat16
    T* memory = nullptr;
  };

  std::vector<Run> find_runs() const;
  // Where the buffers lie in memory at `base`, or if that is null, how much they take.
  int64_t place_buffers(T* base);
  void place_gradients(Placer<T>& place);
  void add_job(Job job, bool local);
  void run_job(const Job& job, int thread, T* workspace, T* shared);
  void gather(int thread);
  // Throws, as torch's binary_cross_entropy, for a NaN in the output: no later phase is to run
  // then.
  void run_loss(int thread);
  void check_probabilities(Range rows) const;
  void measure(int thread);
  void update(int thread);

  std::unique_ptr<Segment<T>> make_segment(const Run& run, T* dy, T* dx) const;

  const cpu::KernelTable& table_;
  const cpu::ComputeKernels<T>& kernels_;
  const cpu::OptimizerKernels<T>& optimizer_;
  bool bf16_;
  std::vector<TrainLayer<T>> layers_;
  std::vector<Update<T>> updates_;
  double max_norm_;  // 0: no clipping
  bool gathers_;
  int processes_;
  size_t lowest_ = 0;  // the first layer with a gradient to give

  Arena<T>& arena_;
  int64_t rows_ = 0, work_ = 0;
  T* gathered_ = nullptr;
  std::span<T> exchange_;
  std::vector<Run> runs_;
  std::vector<LayerBuffers<T>> buffers_;
  std::vector<std::unique_ptr<Segment<T>>> segments_;

  Gather<T> gather_;
  TrainLoss<T> loss_{};

  bool host_loss_ = false;

  int threads_ = 0, loss_phase_ = 0, gradient_phases_ = 0;
  int64_t shared_ = 0;
  std::vector<Job> jobs_;
  std::vector<size_t> stages_;               // where in jobs_ each begins, and the end
  std::vector<int64_t> partials_;            // where in the shared workspace each segment's begin
  std::vector<double> loss_sums_, squares_;  // one a thread
  bool last_is_local_ = false;
};

}  // namespace mlp_ext::step
