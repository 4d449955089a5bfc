#include "train_step.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>

#include <chrono>
#include <thread>

#include "cpu_kernels.h"
#include "eligibility.h"

namespace mlp_ext {

namespace py = pybind11;
using at::Tensor;

TrainStepCore::TrainStepCore(std::vector<LayerSpec> layers, LossSpec loss, py::object optimizer,
                             const std::string& rule, double max_norm, bool bf16, bool flattens,
                             std::vector<py::dict> hooks, const std::vector<py::dict>& structure,
                             std::vector<py::dict> modules, std::shared_ptr<StepLock> lock,
                             std::shared_ptr<StepGroup> group)
    : spec_{std::move(layers), std::move(loss), std::move(optimizer),
            rule_named(rule),  max_norm,        bf16,
            std::move(group)},
      flattens_(flattens),
      hooks_(std::move(hooks)),
      modules_(std::move(modules)),
      lock_(std::move(lock)) {
  TORCH_CHECK_VALUE(!spec_.layers.empty(), "TrainStep: the model has no Linear");
  TORCH_CHECK_VALUE(spec_.rule != nullptr, "TrainStep: unknown update rule ", rule);
  for (const py::dict& dict : structure) structure_.emplace_back(dict);
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
  if (!plan || plan->lacks_state() || !plan->unchanged(gathers)) {
    plan.reset();
    plan.emplace(spec_, gathers, arena);
  }
  return *plan;
}

template LivePlan<float>& TrainStepCore::current<float>(bool);
template LivePlan<double>& TrainStepCore::current<double>(bool);

std::unique_lock<std::mutex> StepLock::lock() {
  std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  if (!lock.owns_lock()) {
    const WithoutGil without_gil;  // the thread that holds the lock may want the GIL
    ++waiting_;
    lock.lock();
    --waiting_;
  }
  return lock;
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
  TORCH_CHECK(!t.requires_grad() || !at::GradMode::is_enabled(), "TrainStep got ", what,
              " that requires a gradient, which it does not give: detach it, or use the loop");
}

}  // namespace

StepOutcome TrainStepCore::check(const Tensor& x, const Tensor& y) const {
  static PyObject* const kForward = interned("forward");
  for (const py::dict& hooks : hooks_) {
    TORCH_CHECK(PyDict_GET_SIZE(hooks.ptr()) == 0,
                "a hook was registered on the model or the optimizer after this TrainStep was "
                "made, and would not run: remove it, or go back to the training loop");
  }
  for (const SeenContainer& seen : structure_) {
    if (!seen.unchanged()) return StepOutcome::kOtherModel;
  }
  for (const py::dict& module : modules_) {
    if (PyDict_GetItemWithError(module.ptr(), kForward) != nullptr) return StepOutcome::kOtherModel;
  }
  TORCH_CHECK(!c10::InferenceMode::is_enabled() && !in_autocast(),
              "TrainStep does not run under inference_mode or autocast; "
              "compute_dtype=torch.bfloat16 makes its products bfloat16");
  TORCH_CHECK(!in_functorch(), "TrainStep got no ordinary tensor, but one of torch.func");
  check_tensor(x, "an input");
  check_tensor(y, "a target");
  return StepOutcome::kDone;
}

Tensor as_matrix(const Tensor& x, bool flattens) {
  const Tensor matrix = flattens && x.dim() > 2 ? x.flatten(1) : x;
  return matrix.is_neg() ? matrix.resolve_neg() : matrix;
}

template <class T>
PyObject* TrainStepCore::step(const Tensor& x, const Tensor& y, bool keep_grad) {
  LivePlan<T>& live = current<T>(/*gathers=*/false);
  const Tensor matrix = as_matrix(x, flattens_);
  live.check_input(matrix);
  const Tensor features = with_unit_stride(matrix);
  const int64_t rows = features.size(0);
  TORCH_CHECK_VALUE(rows > 0, "TrainStep got an empty batch: shape ", x.sizes());
  const LossSpec spec = spec_.loss.kept();
  const CheckedLoss<T> loss(spec, y, rows, live.out_features());
  live.check_rows(rows);
  if (live.lacks_state()) return PyLong_FromLong(int(StepOutcome::kMissingState));
  // Another thread may give x or y other memory meanwhile.
  const c10::Storage kept[] = {features.storage(), y.storage()};
  const Tensor result = at::detail::empty_cpu({}, x.scalar_type());
  live.begin(rows, keep_grad);
  auto& plan = live.plan();
  plan.set_input(data_of<T>(features), row_stride(features));
  plan.set_loss(loss.with(plan.output(), plan.output_grad()));
  live.next();
  {
    const WithoutGil without_gil;
    live.run();
    live.advance();
  }
  *result.mutable_data_ptr<T>() = T(plan.loss());
  live.end(1);
  return as_python(result).release().ptr();
}

PyObject* TrainStepCore::call(const Tensor& x, const Tensor& y, bool keep_grad) {
  const auto lock = lock_->lock();
  if (const StepOutcome outcome = check(x, y); outcome != StepOutcome::kDone) {
    return PyLong_FromLong(int(outcome));
  }
  return with_type_of(x, [&](auto type) { return step<decltype(type)>(x, y, keep_grad); });
}

}  // namespace mlp_ext
