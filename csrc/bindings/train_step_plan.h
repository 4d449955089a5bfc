// A step's plan with everything in Python that its pointers go into: made when a call finds
// something new, and run again as long as nothing is.
#pragma once

#include <ATen/core/MT19937RNGEngine.h>

#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "step_group.h"
#include "train_loss.h"
#include "train_step_model.h"

namespace mlp_ext {

// What a TrainStep was made of.
struct StepSpec {
  std::vector<LayerSpec> layers;
  LossSpec loss;
  pybind11::object optimizer;
  const UpdateRule* rule;
  double max_norm;                   // 0: no clipping
  bool bf16;                         // products of bfloat16 numbers, for parameters of float32
  std::shared_ptr<StepGroup> group;  // of processes that average their gradients; null: none
};

using StatesOfParameters = std::unordered_map<PyObject*, PyObject*>;
// Null once it was read.
using SlotsOfParameters = std::unordered_map<PyObject*, const Slot*>;

// What one parameter's update changes. The objects are kept alive by the containers that they were
// read from.
struct Changed {
  PyObject* object;               // the parameter
  PyObject* own;                  // its state, a dict; null if it needs none
  PyObject* states[kMostStates];  // Tensors in the kernel's order; null where not used
  PyObject *step, *mu_product;    // null where the rule has none
  bool makes_first_state;         // states[0] is to be made by the first step
  at::Tensor first_state;         // until it is stored
  const void* group;              // that its options are of
  Counters counters, next;        // next: during a step
};

// An option whose value can change while the object stays: a tensor, say.
struct SeenNumber {
  pybind11::object object;
  double value;

  bool unchanged() const {
    double now = 0;
    return read_scalar(object.ptr(), now) && now == value;
  }
  int traverse(visitproc visit, void* arg) const {
    Py_VISIT(object.ptr());
    return 0;
  }
};

template <class T>
class LivePlan {
 public:
  // Reads model and optimizer. Throws where they cannot be run as they now are. `arena`: for this
  // plan until the next is made. Runs no Python code where options are plain numbers: what was
  // read together stays together until the GIL is released, and by then its memory is kept.
  LivePlan(const StepSpec& spec, bool gathers, step::Arena<T>& arena);

  // Whether a parameter has no state yet: then the plan cannot run.
  bool lacks_state() const { return lacks_state_; }
  // Throws what is to be said if that one has other entries and goes on lacking some.
  void refuse_incomplete() const {
    if (why_incomplete_) std::rethrow_exception(why_incomplete_);
  }
  // Whether it may run: nothing has changed, or only options, which it has read again.
  bool holds(bool gathers);

  int64_t in_features() const { return model_.layers.front().in; }
  int64_t out_features() const { return model_.layers.back().out; }
  // Throws for another shape, for too few rows. x: what matrix was made of.
  void check_input(const at::Tensor& matrix, const at::Tensor& x) const;
  void check_rows(int64_t rows) const;
  step::TrainStep<T>& plan() { return *plan_; }
  // Without the GIL. host_loss: in place of the plan's own loss, see StepSpec.
  void run(const std::function<void()>& host_loss = {});

  // Around one or more steps on `rows` rows. begin() is the last that can fail. keep_grad: end()
  // leaves the gradients of the last step in .grad.
  void begin(int64_t rows, bool keep_grad = false);
  // Before each: the options that depend on the count of steps, the Dropouts' seed. Throws where
  // the step must not be taken. may_fail: run() takes back what was drawn if it throws.
  void next(bool may_fail = false);
  // After each: running statistics.
  void advance();
  // With the GIL held, after `steps` of them: counts, versions, new states, gradients.
  void end(int64_t steps);

  int traverse(visitproc visit, void* arg) const;

 private:
  using Updates = std::vector<step::Update<T>>;

  void read_optimizer(Updates& updates);
  void read_group(const pybind11::handle& entry, const StatesOfParameters& states,
                  SlotsOfParameters& slots, Updates& updates);
  void read_parameter(GroupOptions& options, const Slot& slot, PyObject* own, const void* group,
                      Updates& updates);
  static void check_options(const char* strange);
  void watch_option(const pybind11::handle& value);
  bool read_options_again(PyObject* group);
  [[noreturn]] static void refuse_state(const GroupOptions& options, PyObject* own,
                                        const at::Tensor& param);
  PyObject* see(PyObject* own, PyObject* key);
  void keep_gradients();

  const StepSpec& spec_;
  const cpu::KernelTable& table_;
  ModelReading<T> model_;
  bool gathers_, lacks_state_ = false, told_ = false;
  std::exception_ptr why_incomplete_;
  std::vector<Changed> changed_;   // those with a param of plan_->updates(), in order
  std::vector<PyObject*> others_;  // parameters of the optimizer that have no gradient
  std::vector<at::Tensor> grads_;  // of model_.slots, to be kept
  pybind11::object attributes_, state_, groups_;     // the optimizer's
  std::vector<SeenContainer> containers_, options_;  // options_: the optimizer's groups
  std::vector<SeenTensor> tensors_;
  std::vector<SeenNumber> numbers_;
  std::unique_ptr<step::TrainStep<T>> plan_;
  std::optional<at::mt19937> before_draw_;  // of a step that may fail
};

}  // namespace mlp_ext
