// TrainStep's compiled half: a model's layers, a loss and an optimizer, and one plan over them.
// What may be in it was decided in mlp_ext/train_step.py.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "surroundings.h"
#include "train_step_plan.h"

namespace mlp_ext {

// What a call came to that is no loss. Nothing has been changed.
enum class StepOutcome : int {
  kDone = 0,
  kMissingState = 1,  // a parameter of the optimizer has no state yet
  kOtherModel = 2,    // a container of `structure` holds something else: make another core
};

// What an input is to a model: rows; samples that are flattened first; rows in any shape, (..., K).
enum class InputForm { kMatrix, kFlattened, kAnyRows };

// One call at a time of the successive cores of a TrainStep.
class StepLock {
 public:
  // With the GIL held, which is let go while another thread has the lock. Throws in the thread that
  // has it: in Python code that a step came to run (a finalizer, a loss) and that calls the step.
  class Held;
  Held lock();
  // Lets those in who wait: an unlocked mutex goes to whoever asks first, which is the one who had
  // it. With the GIL held, the lock not.
  void yield();

 private:
  std::mutex mutex_;
  std::atomic<std::thread::id> owner_{};
  std::atomic<int> waiting_{0};
};

class StepLock::Held {
 public:
  explicit Held(StepLock& lock) : lock_(&lock) { lock.owner_ = std::this_thread::get_id(); }
  ~Held() {
    lock_->owner_ = std::thread::id();
    lock_->mutex_.unlock();
  }
  Held(const Held&) = delete;

 private:
  StepLock* lock_;
};

// A module of the model: another class, or a forward set on it, make another model.
struct SeenModule {
  pybind11::object module;
  pybind11::dict attributes;
  PyTypeObject* type;  // kept alive by what is seen of it: see mlp_ext/_chain.py

  explicit SeenModule(pybind11::object given)
      : module(std::move(given)),
        attributes(module.attr("__dict__")),
        type(Py_TYPE(module.ptr())) {}
  bool unchanged(PyObject* forward) const {
    return Py_TYPE(module.ptr()) == type &&
           PyDict_GetItemWithError(attributes.ptr(), forward) == nullptr;
  }
  int traverse(visitproc visit, void* arg) const {
    Py_VISIT(module.ptr());
    Py_VISIT(attributes.ptr());
    return 0;
  }
};

class TrainStepCore {
 public:
  // rule: the name of one of kRules. max_norm: 0 for no clipping. bf16: see step/bf16_segment.h.
  // form: "matrix", "flattened" or "any rows", of InputForm. hooks: the dictionaries in which a
  // hook that is registered later would appear; a call with one in them is refused. structure:
  // dictionaries and lists that are to stay as they are; entries: of dictionaries, which are to
  // stay. modules: all of the model, whose class is to stay, and that are to have no forward of
  // their own. group: null for a process alone.
  TrainStepCore(std::vector<LayerSpec> layers, LossSpec loss, pybind11::object optimizer,
                const std::string& rule, double max_norm, bool bf16, const std::string& form,
                std::vector<pybind11::dict> hooks, const std::vector<pybind11::object>& structure,
                const std::vector<std::pair<pybind11::dict, pybind11::str>>& entries,
                std::vector<pybind11::object> modules, std::shared_ptr<StepLock> lock,
                std::shared_ptr<StepGroup> group);

  // One step on x (rows, in_features) and y. Returns the loss, or a StepOutcome as a number.
  PyObject* call(const at::Tensor& x, const at::Tensor& y, bool keep_grad);

  // Whether epoch() takes these: x in rows, and y of a compiled form for an output of `columns`.
  bool takes_epoch(const at::Tensor& x, const at::Tensor& y, int64_t columns) const;

  // Steps on the rows of x and y that `index` (int64) names, `size` of them at a time, from batch
  // `first` on; `losses`, of x's dtype, one a batch, receives theirs. Returns a StepOutcome and the
  // number of batches that are done. Throws after whole steps. Every 20 ms what a call checks is
  // checked, and other calls are let in.
  std::pair<int, int64_t> epoch(const at::Tensor& x, const at::Tensor& y, const at::Tensor& index,
                                int64_t size, const at::Tensor& losses, int64_t first);

  // Throws what is to be said where a state is still missing once all have been made.
  void refuse_incomplete() const {
    if (float_.plan) float_.plan->refuse_incomplete();
    if (double_.plan) double_.plan->refuse_incomplete();
  }

  // For Python's collector: all objects that are held; and letting go of them. What was let go
  // refuses every call.
  int traverse(visitproc visit, void* arg) const;
  void clear();

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
  pybind11::object loss_on_host(const T* output, T* gradient, at::IntArrayRef sizes,
                                const at::Tensor& y) const;
  template <class T>
  StepOutcome steps(const at::Tensor& features, class Targets& targets, const at::Tensor& index,
                    const at::Tensor& losses, int64_t& done);
  StepOutcome check(const at::Tensor& x, const at::Tensor& y) const;

  StepSpec spec_;
  InputForm form_;
  std::vector<pybind11::dict> hooks_;
  std::vector<SeenContainer> structure_;
  std::vector<SeenEntry> entries_;
  std::vector<SeenMethod> methods_;  // of the optimizer, that the loop would call
  std::vector<SeenModule> modules_;
  std::shared_ptr<StepLock> lock_;  // of what follows
  Live<float> float_;
  Live<double> double_;
};

// Calls run(float()) or run(double()).
template <class Run>
auto with_type_of(const at::Tensor& x, const Run& run) try {
  if (x.scalar_type() == at::kFloat) return run(float());
  if (x.scalar_type() == at::kDouble) return run(double());
  TORCH_CHECK(false, "TrainStep got an input of dtype ", x.scalar_type(),
              "; expected Float or Double, as the parameters");
} catch (const NotANumber& option) {
  refuse_option(option);
}

// x as (rows, features), of any strides; a copy only if its shape changes and it does not lie well.
at::Tensor as_matrix(const at::Tensor& x, InputForm form);

}  // namespace mlp_ext
