// The processes that train one model by TrainStep, each on batches of its own. They meet in one
// all-reduce a step, of their gradients and of a note from each of what it came for: so that one
// that fails, or has fewer batches, leaves none waiting, and all take a step or none does.
#pragma once

#include <span>
#include <vector>

#include "python.h"

namespace mlp_ext {

class StepGroup {
 public:
  // group: a torch.distributed.ProcessGroup of `processes` processes, two or more. grad_sizes: of
  // every parameter's gradient, 0 for none; they are the same in all processes, and so is the type.
  StepGroup(pybind11::object group, int processes, std::vector<int64_t> grad_sizes, bool is_double);

  int processes() const { return processes_; }
  // Throws if what this process would send is no longer what all agreed on.
  void check(const std::vector<int64_t>& grad_sizes, at::ScalarType type) const;

  // The reasons to meet. Both throw, in every process, if not all came for the same.
  // A step: `exchange`, of step/train_step.h, becomes the sum over the processes. Without the GIL.
  template <class T>
  void add_up(std::span<T> exchange);
  // The end of the data.
  void end();
  // This process has failed, and will not come to the meeting that the others are at; never throws
  // for what they say.
  void leave();

  int64_t meetings() const { return meetings_; }
  // Whether the last meeting failed: the other processes know of it, or are out of reach.
  bool is_apart() const { return is_apart_; }

 private:
  // Where in a message the notes are; a process that leaves writes none.
  enum Note { kSteps, kEnds };

  // With the GIL, which is let go while the group is at work.
  void meet(const at::Tensor& message);
  void expect_all(Note note, double steps, double ends);

  pybind11::object group_;
  int processes_;
  std::vector<int64_t> grad_sizes_;
  at::ScalarType type_;
  int64_t size_;  // of a message
  int64_t meetings_ = 0;
  bool is_apart_ = false;
};

}  // namespace mlp_ext
