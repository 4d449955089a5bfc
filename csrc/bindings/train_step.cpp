#include "train_step.h"

#include <ATen/EmptyTensor.h>
#include <ATen/SavedTensorHooks.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/anomaly_mode.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "cpu_kernels.h"
#include "eligibility.h"

namespace mlp_ext {

namespace py = pybind11;
using at::Tensor;

namespace {

InputForm form_named(const std::string& name) {
  if (name == "matrix") return InputForm::kMatrix;
  if (name == "flattened") return InputForm::kFlattened;
  TORCH_CHECK_VALUE(name == "any rows", "TrainStep: unknown form of the input '", name, "'");
  return InputForm::kAnyRows;
}

}  // namespace

TrainStepCore::TrainStepCore(std::vector<LayerSpec> layers, LossSpec loss, py::object optimizer,
                             const std::string& rule, double max_norm, bool bf16,
                             const std::string& form, std::vector<py::dict> hooks,
                             const std::vector<py::object>& structure,
                             const std::vector<std::pair<py::dict, py::str>>& entries,
                             std::vector<py::object> modules, std::shared_ptr<StepLock> lock,
                             std::shared_ptr<StepGroup> group)
    : spec_{std::move(layers), std::move(loss), std::move(optimizer),
            rule_named(rule),  max_norm,        bf16,
            std::move(group)},
      form_(form_named(form)),
      hooks_(std::move(hooks)),
      modules_(modules.begin(), modules.end()),
      lock_(std::move(lock)) {
  TORCH_CHECK_VALUE(!spec_.layers.empty(), "TrainStep: the model has no Linear");
  TORCH_CHECK_VALUE(spec_.rule != nullptr, "TrainStep: unknown update rule ", rule);
  for (const py::object& container : structure) structure_.emplace_back(container);
  for (const auto& [dict, key] : entries) entries_.emplace_back(dict, key);
  for (const char* name : {"step", "zero_grad"}) methods_.emplace_back(spec_.optimizer, name);
}

template <class T>
auto TrainStepCore::live() -> Live<T>& {
  if constexpr (std::is_same_v<T, double>) {
    return double_;
  } else {
    return float_;
  }
}

template <class T>
LivePlan<T>& TrainStepCore::current(bool gathers) {
  auto& [arena, plan] = live<T>();
  bool holds = false;
  try {
    holds = plan && !plan->lacks_state() && plan->holds(gathers);
  } catch (...) {
    plan.reset();  // half of what has changed may be in it
    throw;
  }
  if (!holds) {
    plan.reset();
    plan.emplace(spec_, gathers, arena);
  }
  return *plan;
}

template LivePlan<float>& TrainStepCore::current<float>(bool);
template LivePlan<double>& TrainStepCore::current<double>(bool);

StepLock::Held StepLock::lock() {
  if (!mutex_.try_lock()) {
    TORCH_CHECK(owner_.load() != std::this_thread::get_id(),
                "TrainStep was called from within a call of its own");
    const WithoutGil without_gil;  // the thread that holds the lock may want the GIL
    ++waiting_;
    mutex_.lock();
    --waiting_;
  }
  return Held(*this);
}

void StepLock::yield() {
  if (waiting_.load() == 0) return;
  const WithoutGil without_gil;
  std::this_thread::sleep_for(std::chrono::microseconds(200));
}

namespace {

// What has memory for the kernels to read.
void check_tensor(const Tensor& t, const char* what) {
  TORCH_CHECK(t.device().is_cpu() && t.layout() == at::kStrided, "TrainStep got ", what, " on ",
              t.device(), "; expected a dense tensor on cpu");
  constexpr c10::DispatchKeySet kOdd({c10::DispatchKey::Python, c10::DispatchKey::ZeroTensor,
                                      c10::DispatchKey::AutogradNestedTensor});
  TORCH_CHECK(
      !t.unsafeGetTensorImpl()->key_set().has_any(kOdd), "TrainStep got ", what,
      " that is no ordinary tensor, but a nested, fake or zero tensor, or of a class with a "
      "dispatch of its own");
  TORCH_CHECK(!t.requires_grad(), "TrainStep got ", what,
              " that requires a gradient, which it does not give: detach it, or use the loop");
  readable(t);
}

}  // namespace

StepOutcome TrainStepCore::check(const Tensor& x, const Tensor& y) const {
  static PyObject* const kForward = interned("forward");
  TORCH_CHECK(!spec_.layers.empty(), "this TrainStep was collected as garbage");
  for (const py::dict& hooks : hooks_) {
    TORCH_CHECK(PyDict_GET_SIZE(hooks.ptr()) == 0,
                "a hook was registered on the model or the optimizer after this TrainStep was "
                "made, and would not run: remove it, or go back to the training loop");
  }
  for (const SeenContainer& seen : structure_) {
    if (!seen.unchanged()) return StepOutcome::kOtherModel;
  }
  for (const SeenEntry& seen : entries_) {
    if (!seen.unchanged()) return StepOutcome::kOtherModel;
  }
  for (const SeenMethod& seen : methods_) {
    if (!seen.unchanged()) return StepOutcome::kOtherModel;
  }
  for (const SeenModule& seen : modules_) {
    if (!seen.unchanged(kForward)) return StepOutcome::kOtherModel;
  }
  TORCH_CHECK(as_usual(kLayers | kLosses), "TrainStep does not run while ",
              what_is_unusual(kLayers | kLosses), ": use the loop");
  TORCH_CHECK(!c10::InferenceMode::is_enabled() && !in_autocast(),
              "TrainStep does not run under inference_mode or autocast; "
              "compute_dtype=torch.bfloat16 makes its products bfloat16");
  TORCH_CHECK(at::GradMode::is_enabled(),
              "TrainStep got a call under no_grad, where the loop's loss.backward() fails");
  TORCH_CHECK(!torch::autograd::AnomalyMode::is_enabled(),
              "TrainStep does not run under detect_anomaly, which looks at the gradients of each "
              "operator: use the loop");
  TORCH_CHECK(!at::SavedTensorDefaultHooks::get_hooks(),
              "TrainStep does not run under saved_tensors_hooks, which it would not call: use the "
              "loop");
  TORCH_CHECK(!in_functorch(), "TrainStep got no ordinary tensor, but one of torch.func");
  check_tensor(x, "an input");
  check_tensor(y, "a target");
  return StepOutcome::kDone;
}

Tensor as_matrix(const Tensor& x, InputForm form) {
  Tensor matrix = x;
  if (form == InputForm::kFlattened && x.dim() > 2) matrix = x.flatten(1);
  if (form == InputForm::kAnyRows && x.dim() != 2 && x.dim() > 0 && x.numel() > 0) {
    matrix = x.reshape({-1, x.size(-1)});
  }
  return matrix.is_neg() ? matrix.resolve_neg() : matrix;
}

bool TrainStepCore::takes_epoch(const Tensor& x, const Tensor& y, int64_t columns) const {
  const bool in_rows = x.dim() == 2 || (x.dim() > 2 && form_ == InputForm::kFlattened);
  return in_rows && x.size(0) > 0 && !x.requires_grad() && !y.requires_grad() &&
         has_compiled_form(LossOptions(spec_.loss), y, x.scalar_type(), x.size(0), columns);
}

int TrainStepCore::traverse(visitproc visit, void* arg) const {
  for (const LayerSpec& layer : spec_.layers) {
    Py_VISIT(layer.module.ptr());
    Py_VISIT(layer.dropout.ptr());
  }
  Py_VISIT(spec_.optimizer.ptr());
  for (const py::dict& dict : hooks_) Py_VISIT(dict.ptr());
  if (const int stop = traverse_all(modules_, visit, arg)) return stop;
  if (const int stop = spec_.loss.traverse(visit, arg)) return stop;
  if (const int stop = traverse_all(structure_, visit, arg)) return stop;
  if (const int stop = traverse_all(entries_, visit, arg)) return stop;
  if (const int stop = traverse_all(methods_, visit, arg)) return stop;
  if (float_.plan) {
    if (const int stop = float_.plan->traverse(visit, arg)) return stop;
  }
  return double_.plan ? double_.plan->traverse(visit, arg) : 0;
}

// Out of reach first, and then destroyed: that may run Python code, which finds nothing half gone.
void TrainStepCore::clear() {
  const auto layers = std::exchange(spec_.layers, {});
  const auto loss = std::exchange(spec_.loss, {});
  const py::object optimizer = std::exchange(spec_.optimizer, py::none());
  const auto hooks = std::exchange(hooks_, {});
  const auto modules = std::exchange(modules_, {});
  const auto structure = std::exchange(structure_, {});
  const auto entries = std::exchange(entries_, {});
  const auto methods = std::exchange(methods_, {});
  float_.plan.reset();
  double_.plan.reset();
}

template <class T>
PyObject* TrainStepCore::step(const Tensor& x, const Tensor& y, bool keep_grad) {
  LivePlan<T>& live = current<T>(/*gathers=*/false);
  const Tensor matrix = as_matrix(x, form_);
  live.check_input(matrix, x);
  const Tensor features = with_unit_stride(matrix);
  const int64_t rows = features.size(0), columns = live.out_features();
  TORCH_CHECK_VALUE(rows > 0, "TrainStep got an empty batch: shape ", x.sizes());
  const bool in_rows = x.dim() == 2 || form_ == InputForm::kFlattened;
  at::DimVector output_sizes{rows, columns};
  if (!in_rows) {
    output_sizes.assign(x.sizes().begin(), x.sizes().end());
    output_sizes.back() = columns;
  }
  const LossOptions options(spec_.loss);
  // Of an output in another shape: each element by itself, or PyTorch's loss decides.
  const bool by_element = !in_rows && !options.is_cross_entropy && !options.weight.defined() &&
                          !options.pos_weight.defined() &&
                          y.sizes() == at::IntArrayRef(output_sizes);
  const Tensor target = by_element ? y.reshape({rows, columns}) : y;
  const bool compiled =
      (in_rows || by_element) && has_compiled_form(options, target, kType<T>, rows, columns);
  live.check_rows(rows);
  std::optional<CheckedLoss<T>> loss;
  if (compiled) loss.emplace(options, target, rows, columns);
  if (live.lacks_state()) {
    // What it will refuse is to be seen before states are made.
    if (!compiled) loss_on_host<T>(nullptr, nullptr, output_sizes, y);
    return PyLong_FromLong(int(StepOutcome::kMissingState));
  }
  const T* const input = data_of<T>(features);
  // Another thread may give x or y other memory meanwhile.
  const c10::Storage kept[] = {features.storage(), y.storage()};
  py::object result;
  if (compiled) result = as_python(at::detail::empty_cpu({}, x.scalar_type()));
  live.begin(rows, keep_grad);
  auto& plan = live.plan();
  plan.set_input(input, row_stride(features));
  if (compiled) plan.set_loss(loss->with(plan.output(), plan.output_grad()));
  live.next(/*may_fail=*/!compiled);
  std::function<void()> host_loss;
  if (!compiled) {
    host_loss = [&] {
      result = loss_on_host<T>(plan.output(), plan.output_grad(), output_sizes, y);
    };
  }
  {
    const WithoutGil without_gil;
    live.run(host_loss);
    live.advance();
  }
  if (compiled) *mutable_data_of<T>(tensor_of(result.ptr())) = T(plan.loss());
  live.end(1);
  return result.release().ptr();
}

// PyTorch's loss of a copy of the output (what it keeps must not be the next step's), or if that is
// null of zeros, and its gradient into `gradient`, unless that is null. Takes the GIL.
template <class T>
py::object TrainStepCore::loss_on_host(const T* output, T* gradient, at::IntArrayRef sizes,
                                       const Tensor& y) const {
  const WithGil gil;
  const Tensor copy = at::detail::empty_cpu(sizes, kType<T>);
  T* const values = mutable_data_of<T>(copy);
  if (output) {
    std::copy_n(output, copy.numel(), values);
  } else {
    std::fill_n(values, copy.numel(), T(0));
  }
  const py::tuple both = spec_.loss.on_host(as_python(copy), as_python(y));
  const Tensor grad = tensor_of(both[1].ptr()).to(kType<T>).contiguous();
  TORCH_CHECK(grad.sizes() == sizes, "TrainStep: the loss gave a gradient of shape ", grad.sizes(),
              " for an output of shape ", sizes);
  if (gradient) std::copy_n(data_of<T>(grad), copy.numel(), gradient);
  return both[0];
}

PyObject* TrainStepCore::call(const Tensor& x, const Tensor& y, bool keep_grad) {
  const auto lock = lock_->lock();
  if (const StepOutcome outcome = check(x, y); outcome != StepOutcome::kDone) {
    return PyLong_FromLong(int(outcome));
  }
  // (The batches of an epoch are copies of their own.)
  TORCH_CHECK(
      !x.is_inference() && !y.is_inference(), "TrainStep got ",
      x.is_inference() ? "an input" : "a target",
      " that was made under inference_mode: inference tensors cannot be saved for backward, "
      "clone it outside");
  return with_type_of(x, [&](auto type) { return step<decltype(type)>(x, y, keep_grad); });
}

}  // namespace mlp_ext
