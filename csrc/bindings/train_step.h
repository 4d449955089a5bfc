// TrainStep's compiled half: a model's layers, a loss and an optimizer, and one plan over them.
// What may be in it was decided in mlp_ext/train_step.py.
#pragma once

#include <pybind11/pybind11.h>

#include <mutex>
#include <optional>
#include <vector>

#include "train_step_plan.h"

namespace mlp_ext {

// What a call came to that is no loss. Nothing has been changed.
enum class StepOutcome : int {
  kDone = 0,
  kMissingState = 1,  // a parameter of the optimizer has no state yet
  kOtherModel = 2,    // a container of `structure` holds something else: make another core
};

class TrainStepCore {
 public:
  // rule: "sgd" or "adam". max_norm: 0 for no clipping. bf16: see step/bf16_segment.h. flattens:
  // the input (batch, ...) to (batch, features) first. hooks: the dictionaries in which a hook that
  // is registered later would appear; a call with one in them is refused. structure: dictionaries
  // of modules that are to stay as they are.
  TrainStepCore(std::vector<LayerSpec> layers, LossSpec loss, pybind11::object optimizer,
                const std::string& rule, double max_norm, bool bf16, bool flattens,
                std::vector<pybind11::dict> hooks, const std::vector<pybind11::dict>& structure);

  // One step on x (rows, in_features) and y. Returns the loss, or a StepOutcome as a number.
  PyObject* call(const at::Tensor& x, const at::Tensor& y, bool keep_grad);

  // Steps on the rows of x and y that `index` names, `size` of them at a time; `losses` receives
  // theirs. Returns a StepOutcome. Throws after whole steps.
  int epoch(const at::Tensor& x, const at::Tensor& y, const at::Tensor& index, int64_t size,
            const at::Tensor& losses);

 private:
  template <class T>
  struct Live {
    step::Arena<T> arena;
    std::optional<LivePlan<T>> plan;
  };
  template <class T>
  Live<T>& live();
  // A plan that is up to date; it may lack a state.
  template <class T>
  LivePlan<T>& current(bool gathers);

  template <class T>
  PyObject* step(const at::Tensor& x, const at::Tensor& y, bool keep_grad);
  template <class T>
  int steps(const at::Tensor& x, const at::Tensor& y, const at::Tensor& index, int64_t size,
            const at::Tensor& losses);
  StepOutcome check(const at::Tensor& x) const;
  std::unique_lock<std::mutex> locked();

  StepSpec spec_;
  bool flattens_;
  std::vector<pybind11::dict> hooks_;
  std::vector<SeenContainer> structure_;
  std::mutex mutex_;  // of what follows: one call at a time
  Live<float> float_;
  Live<double> double_;
};

// Calls run(float()) or run(double()).
template <class Run>
auto with_type_of(const at::Tensor& x, const Run& run) {
  try {
    if (x.scalar_type() == at::kFloat) return run(float());
    if (x.scalar_type() == at::kDouble) return run(double());
  } catch (const NotANumber&) {
    throw pybind11::type_error("TrainStep takes options of the optimizer that are Python numbers");
  }
  TORCH_CHECK(false, "TrainStep got an input of dtype ", x.scalar_type(),
              "; expected Float or Double, as the parameters");
}

// x as the first layer reads it: (rows, in), each row contiguous.
at::Tensor as_matrix(const at::Tensor& x, bool flattens, int64_t in);

// core(x, y, keep_grad) as a built-in function, which Python calls in a tenth of the time that it
// takes to call a method of a pybind11 class.
pybind11::object fast_call(const pybind11::object& core);

}  // namespace mlp_ext
