#include "train_step.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>

#include "cpu_kernels.h"
#include "recycling.h"
#include "train_step_call.h"

namespace mlp_ext {

namespace py = pybind11;
using at::Tensor;

namespace {

template <class T>
const cpu::OptimizerKernels<T>& optimizer_kernels(const cpu::KernelTable& table) {
  if constexpr (std::is_same_v<T, double>) {
    return table.optim_f64;
  } else {
    return table.optim_f32;
  }
}

// The seed of a step's Dropouts, from PyTorch's default generator: manual_seed makes a run
// reproducible.
uint64_t draw_seed() {
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard<std::mutex> lock(generator.mutex());
  return at::check_generator<at::CPUGeneratorImpl>(generator)->random64();
}

}  // namespace

TrainStepCore::TrainStepCore(std::vector<LayerSpec> layers, LossSpec loss, py::object optimizer,
                             const std::string& rule, double max_norm, std::vector<py::dict> hooks)
    : layers_(std::move(layers)),
      loss_(std::move(loss)),
      optimizer_(std::move(optimizer)),
      rule_(rule_named(rule)),
      max_norm_(max_norm),
      hooks_(std::move(hooks)) {
  TORCH_CHECK_VALUE(!layers_.empty(), "TrainStep: the model has no Linear");
  TORCH_CHECK_VALUE(rule_ != nullptr, "TrainStep: unknown update rule ", rule);
}

template <class T>
py::object TrainStepCore::run(const Tensor& x, const Tensor& y, bool keep_grad) {
  static PyObject* const kParams = interned("params");
  static PyObject* const kState = interned("state");
  static PyObject* const kParamGroups = interned("param_groups");
  Call<T> call;
  std::vector<Changed> slots;
  read_layers<T>(layers_, x.scalar_type(), call, slots);
  TORCH_CHECK(!slots.empty(), "TrainStep: no parameter of the model requires a gradient");
  const int64_t in = call.layers.front().in, out = call.layers.back().out;
  TORCH_CHECK(x.dim() == 2 && x.size(1) == in, "TrainStep got an input of shape ", x.sizes(),
              "; expected (batch, ", in, ")");
  TORCH_CHECK_VALUE(x.size(0) > 0, "TrainStep got an empty batch: shape ", x.sizes());
  const int64_t rows = x.size(0);
  const Tensor features = with_unit_stride(x).resolve_neg();
  const CheckedLoss<T> loss(loss_, y, rows, out);

  const std::unique_lock<std::mutex> lock = [this] {
    const py::gil_scoped_release without_gil;  // the thread that holds the lock may want the GIL
    return std::unique_lock<std::mutex>(mutex_);
  }();
  if (!buffer_.defined() || buffer_.scalar_type() != x.scalar_type()) {
    buffer_ = empty_recycled({0}, x.scalar_type());
  }
  const auto lay_out = [&] {
    return step::TrainBuffers<T>(call.layers, rows, mutable_data_of<T>(buffer_), buffer_.numel());
  };
  step::TrainBuffers<T> buffers = lay_out();
  if (buffers.elements > buffer_.numel()) {
    buffer_ = empty_recycled({buffers.elements}, x.scalar_type());
    buffers = lay_out();
  }
  const auto gradient_of = [&](const Changed& slot) {
    return slot.is_bias ? buffers.db[slot.layer] : buffers.dw[slot.layer];
  };

  // The optimizer's parameters, in its order.
  bool complete = true;
  std::vector<bool> updated(slots.size(), false);
  const py::dict state = attribute(optimizer_, kState);
  const py::list groups = attribute(optimizer_, kParamGroups);
  for (const py::handle entry : groups) {
    const Group group(entry.ptr());
    if (asks_for_torch(group)) {
      throw py::value_error("TrainStep does not take differentiable or capturable optimizers");
    }
    GroupOptions options(*rule_, group);
    PyObject* const params = group.sequence(kParams);
    TORCH_CHECK(params != nullptr, "TrainStep: a group's params are no list");
    for (const py::handle object : py::reinterpret_borrow<py::sequence>(params)) {
      const auto slot = std::find_if(slots.begin(), slots.end(), [&](const Changed& candidate) {
        return candidate.object == object.ptr();
      });
      if (slot == slots.end()) continue;  // no gradient: frozen, or not of this model
      Changed changed = *slot;
      step::Update<T> update{};
      update.param = mutable_data_of<T>(changed.param);
      update.grad = gradient_of(changed);
      update.size = changed.param.numel();
      PyObject* own = parameter_state(state, object.ptr());
      if (!read_update(options, own, update, changed)) complete = false;
      updated[slot - slots.begin()] = true;
      call.updates.push_back(update);
      call.changed.push_back(std::move(changed));
    }
  }
  if (!complete) return py::none();
  for (size_t s = 0; max_norm_ > 0 && s < slots.size(); ++s) {
    if (updated[s]) continue;
    step::Update<T> counted{};
    counted.grad = gradient_of(slots[s]);
    counted.size = slots[s].param.numel();
    call.updates.push_back(counted);
  }
  // What follows, up to the plan, is the last that can fail for want of memory.
  for (size_t i = 0; i < call.changed.size(); ++i) {
    Changed& changed = call.changed[i];
    if (!changed.makes_first_state) continue;
    changed.states[0] = at::empty_like(changed.param).detach();
    call.updates[i].states[0] = mutable_data_of<T>(changed.states[0]);
  }
  std::vector<Tensor> kept_grads;
  for (size_t s = 0; keep_grad && s < slots.size(); ++s) {
    kept_grads.push_back(at::empty_like(slots[s].param).detach());
  }
  const Tensor result = at::empty({}, x.options());

  const cpu::KernelTable& table = cpu::kernels();
  step::TrainStep<T> plan(compute_kernels<T>(table), optimizer_kernels<T>(table),
                          std::move(call.layers), buffers, data_of<T>(features),
                          row_stride(features), rows,
                          loss.with(buffers.y.back(), buffers.loss_grad), std::move(call.updates),
                          max_norm_, call.random ? draw_seed() : 0);
  {
    const py::gil_scoped_release without_gil;
    run_plan(plan);
  }
  *result.mutable_data_ptr<T>() = T(plan.loss());
  for (const Changed& changed : call.changed) {
    bump_versions(changed.param, changed);
    changed.count();
    if (changed.makes_first_state) {
      const py::object own = state[py::handle(changed.object)];
      own[py::handle(rule_->state_key(0))] =
          py::reinterpret_steal<py::object>(THPVariable_Wrap(changed.states[0]));
    }
  }
  const T scale = T(plan.grad_scale());
  for (size_t g = 0; g < kept_grads.size(); ++g) {
    const T* from = gradient_of(slots[g]);
    T* to = mutable_data_of<T>(kept_grads[g]);
    for (int64_t i = 0; i < kept_grads[g].numel(); ++i) to[i] = scale * from[i];
    slots[g].param.mutable_grad() = kept_grads[g];
  }
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(result));
}

py::object TrainStepCore::call(const Tensor& x, const Tensor& y, bool keep_grad) {
  for (const py::dict& hooks : hooks_) {
    TORCH_CHECK(hooks.empty(),
                "a hook was registered on the model or the optimizer after this TrainStep was "
                "made, and would not run: remove it, or go back to the training loop");
  }
  TORCH_CHECK(!c10::InferenceMode::is_enabled() && !at::autocast::is_autocast_enabled(at::kCPU),
              "TrainStep does not run under inference_mode or autocast");
  TORCH_CHECK(x.device().is_cpu() && x.layout() == at::kStrided, "TrainStep got an input on ",
              x.device(), "; expected a dense tensor on cpu");
  try {
    if (x.scalar_type() == at::kFloat) return run<float>(x, y, keep_grad);
    if (x.scalar_type() == at::kDouble) return run<double>(x, y, keep_grad);
  } catch (const NotANumber&) {
    throw py::type_error("TrainStep takes options of the optimizer that are Python numbers");
  }
  TORCH_CHECK(false, "TrainStep got an input of dtype ", x.scalar_type(),
              "; expected Float or Double, as the parameters");
}

}  // namespace mlp_ext
