#include "train_step.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/empty.h>

#include "cpu_kernels.h"
#include "optimizer_groups.h"
#include "optimizer_items.h"
#include "parallel.h"
#include "recycling.h"
#include "stack_tensors.h"
#include "workspace.h"

namespace mlp_ext {

namespace py = pybind11;
using at::Tensor;

namespace {

template <class T>
const cpu::OptimizerKernels<T>& optimizer_kernels() {
  if constexpr (std::is_same_v<T, double>) {
    return cpu::kernels().optim_f64;
  } else {
    return cpu::kernels().optim_f32;
  }
}

// The model's tensors at this call.
struct Parameter {
  Tensor tensor;  // undefined for no bias
  PyObject* object = nullptr;
};

Parameter parameter_in(const py::dict& parameters, PyObject* name) {
  PyObject* object = PyDict_GetItemWithError(parameters.ptr(), name);
  if (object == nullptr && PyErr_Occurred()) throw py::error_already_set();
  if (object == nullptr || object == Py_None) return {};
  TORCH_CHECK(THPVariable_Check(object), "TrainStep: a parameter is no Tensor any more");
  return {THPVariable_Unpack(object), object};
}

void check_parameter(const Tensor& t, at::ScalarType type, size_t layer, const char* name) {
  TORCH_CHECK(t.scalar_type() == type && is_plain(t) && t.is_contiguous(), "TrainStep: the ", name,
              " of Linear number ", layer, " is ", t.scalar_type(), " of shape ", t.sizes(), " on ",
              t.device(), " with strides ", t.strides(), "; expected a contiguous ", type,
              " tensor on cpu, as at construction");
}

// Elements that a step's random numbers are drawn for; PyTorch's default generator gives the seed,
// so that manual_seed makes a run reproducible.
uint64_t draw_seed() {
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard<std::mutex> lock(generator.mutex());
  return at::check_generator<at::CPUGeneratorImpl>(generator)->random64();
}

// What one parameter's update changes besides the parameter.
struct Changed {
  PyObject* object;
  Tensor param, step;
  Tensor states[3];
  size_t layer;
  bool is_bias, first;
};

template <class T>
struct Call {
  std::vector<step::TrainLayer<T>> layers;
  std::vector<step::Update<T>> updates;
  std::vector<Changed> changed;
  bool random = false;
};

py::object attribute(const py::object& object, PyObject* name) {
  py::object value = py::reinterpret_steal<py::object>(PyObject_GetAttr(object.ptr(), name));
  if (!value) throw py::error_already_set();
  return value;
}

bool is_training(const py::object& module) {
  static PyObject* const kTraining = interned("training");
  return PyObject_IsTrue(attribute(module, kTraining).ptr()) == 1;
}

double probability_of(const py::object& module) {
  static PyObject* const kP = interned("p");
  return Group::as_double(attribute(module, kP).ptr());
}

}  // namespace

TrainStepCore::TrainStepCore(std::vector<LayerSpec> layers, LossSpec loss, py::object optimizer,
                             const std::string& rule, double max_norm, std::vector<py::dict> hooks)
    : layers_(std::move(layers)),
      loss_(std::move(loss)),
      optimizer_(std::move(optimizer)),
      rule_(rule == "sgd" ? step::Rule::kSgd : step::Rule::kAdam),
      max_norm_(max_norm),
      hooks_(std::move(hooks)) {
  TORCH_CHECK_VALUE(!layers_.empty(), "TrainStep: the model has no Linear");
  TORCH_CHECK_VALUE(rule == "sgd" || rule == "adam", "TrainStep: unknown update rule ", rule);
}

namespace {

// Reads the layers; and for each parameter, in `slots`, where its gradient will be.
template <class T>
void read_layers(const std::vector<LayerSpec>& specs, at::ScalarType type, Call<T>& call,
                 std::vector<Changed>& slots) {
  static PyObject* const kWeight = interned("weight");
  static PyObject* const kBias = interned("bias");
  for (size_t l = 0; l < specs.size(); ++l) {
    const Parameter weight = parameter_in(specs[l].parameters, kWeight);
    const Parameter bias = parameter_in(specs[l].parameters, kBias);
    TORCH_CHECK(weight.tensor.defined() && weight.tensor.dim() == 2, "TrainStep: Linear number ", l,
                " has no weight any more");
    check_parameter(weight.tensor, type, l, "weight");
    step::TrainLayer<T> layer{};
    layer.out = weight.tensor.size(0), layer.in = weight.tensor.size(1);
    layer.weight = data_of<T>(weight.tensor);
    layer.activation = specs[l].activation;
    layer.wants_weight_grad = weight.tensor.requires_grad();
    TORCH_CHECK(l == 0 || call.layers.back().out == layer.in, "TrainStep: Linear number ", l,
                " takes ", layer.in, " features, but the one before gives ",
                l == 0 ? 0 : call.layers.back().out);
    if (layer.wants_weight_grad) {
      slots.push_back({weight.object, weight.tensor, {}, {}, l, false, false});
    }
    if (bias.tensor.defined()) {
      check_parameter(bias.tensor, type, l, "bias");
      TORCH_CHECK(bias.tensor.dim() == 1 && bias.tensor.size(0) == layer.out,
                  "TrainStep: the bias of Linear number ", l, " has shape ", bias.tensor.sizes());
      layer.bias = data_of<T>(bias.tensor);
      layer.wants_bias_grad = bias.tensor.requires_grad();
      if (layer.wants_bias_grad) {
        slots.push_back({bias.object, bias.tensor, {}, {}, l, true, false});
      }
    }
    if (!specs[l].dropout.is_none() && is_training(specs[l].dropout)) {
      layer.dropout = probability_of(specs[l].dropout);
      call.random = call.random || layer.dropout > 0;
    }
    call.layers.push_back(layer);
  }
}

// One group's options, read once a call.
struct Options {
  cpu::SgdArgs sgd{};
  cpu::AdamArgs adam{};
  double last_step = -1;  // that adam's fields are worked out for

  Options(const Group& group, step::Rule rule) {
    if (asks_for_torch(group)) {
      throw py::value_error("TrainStep does not take differentiable or capturable optimizers");
    }
    if (rule == step::Rule::kSgd) {
      sgd = sgd_options(group);
    } else {
      adam = adam_options(group);
    }
  }
};

// Fills in options and states of one parameter; false if it has no state yet.
template <class T>
bool read_state(Options& options, step::Rule rule, PyObject* own, const Tensor& param,
                step::Update<T>& update, Changed& changed) {
  static PyObject* const kStep = interned("step");
  static const char* const kAdamStates[] = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"};
  static PyObject* const kAdamKeys[] = {interned(kAdamStates[0]), interned(kAdamStates[1]),
                                        interned(kAdamStates[2])};
  static PyObject* const kBuffer = interned("momentum_buffer");
  const auto take = [&](int i, PyObject* key, const char* name) {
    const Tensor* state = own ? state_tensor(own, key) : nullptr;
    if (state == nullptr) return false;
    TORCH_CHECK(fits(*state, name, param, /*strict=*/true), "TrainStep: the optimizer's state '",
                name, "' lies in memory otherwise than its parameter");
    changed.states[i] = *state;
    update.states[i] = mutable_data_of<T>(*state);
    return true;
  };
  if (rule == step::Rule::kSgd) {
    update.sgd = options.sgd;
    if (update.sgd.momentum != 0 && !take(0, kBuffer, "momentum_buffer")) {
      update.sgd.first = changed.first = true;
    }
    return true;
  }
  for (int i = 0; i < (options.adam.amsgrad ? 3 : 2); ++i) {
    if (!take(i, kAdamKeys[i], kAdamStates[i])) return false;
  }
  const Tensor* step = own ? state_tensor(own, kStep) : nullptr;
  if (step == nullptr) return false;
  TORCH_CHECK(step->dim() == 0 && is_plain(*step) &&
                  (step->scalar_type() == at::kFloat || step->scalar_type() == at::kDouble),
              "TrainStep: the optimizer's state 'step' is no scalar tensor on cpu");
  changed.step = *step;
  const double count = 1 + (step->scalar_type() == at::kFloat ? *step->const_data_ptr<float>()
                                                              : *step->const_data_ptr<double>());
  if (count != options.last_step) {
    set_step(options.adam, count);
    options.last_step = count;
  }
  update.adam = options.adam;
  return true;
}

void add_one(const Tensor& step) {
  if (step.scalar_type() == at::kFloat) {
    *step.mutable_data_ptr<float>() += 1;
  } else {
    *step.mutable_data_ptr<double>() += 1;
  }
  step.unsafeGetTensorImpl()->bump_version();
}

}  // namespace

template <class T>
py::object TrainStepCore::run(const Tensor& x, const Tensor& y, bool keep_grad) {
  static PyObject* const kParams = interned("params");
  static PyObject* const kState = interned("state");
  static PyObject* const kParamGroups = interned("param_groups");
  Call<T> call;
  std::vector<Changed> slots;
  read_layers<T>(layers_, x.scalar_type(), call, slots);
  const int64_t in = call.layers.front().in, out = call.layers.back().out;
  TORCH_CHECK(x.dim() == 2 && x.size(1) == in, "TrainStep got an input of shape ", x.sizes(),
              "; expected (batch, ", in, ")");
  TORCH_CHECK_VALUE(x.size(0) > 0, "TrainStep got an empty batch: shape ", x.sizes());
  const int64_t rows = x.size(0);
  const Tensor features = with_unit_stride(x);
  const CheckedLoss<T> loss(loss_, y, rows, out);

  const std::unique_lock<std::mutex> lock = [this] {
    const py::gil_scoped_release without_gil;  // the thread that holds the lock may want the GIL
    return std::unique_lock<std::mutex>(mutex_);
  }();
  const int64_t elements = step::TrainBuffers<T>(call.layers, rows, nullptr).elements;
  if (!buffer_.defined() || buffer_.scalar_type() != x.scalar_type() ||
      buffer_.numel() < elements) {
    buffer_ = empty_recycled({elements}, x.scalar_type());
  }
  const step::TrainBuffers<T> buffers(call.layers, rows, mutable_data_of<T>(buffer_));
  const auto gradient_of = [&](const Changed& slot) {
    return slot.is_bias ? buffers.db[slot.layer] : buffers.dw[slot.layer];
  };

  // The optimizer's parameters, in its order.
  const py::dict state = attribute(optimizer_, kState);
  const py::list groups = attribute(optimizer_, kParamGroups);
  for (const py::handle entry : groups) {
    const Group group(entry.ptr());
    Options options(group, rule_);
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
      if (!read_state(options, rule_, own, changed.param, update, changed)) return py::none();
      call.updates.push_back(update);
      call.changed.push_back(std::move(changed));
    }
  }
  for (size_t i = 0; i < call.changed.size(); ++i) {  // the last that can fail for want of memory
    Changed& changed = call.changed[i];
    if (!changed.first) continue;
    changed.states[0] = at::empty_like(changed.param).detach();
    call.updates[i].states[0] = mutable_data_of<T>(changed.states[0]);
  }
  Tensor result = at::empty({}, x.options());

  step::TrainStep<T> plan(compute_kernels<T>(), optimizer_kernels<T>(), std::move(call.layers),
                          buffers, data_of<T>(features), row_stride(features), rows,
                          loss.with(buffers.y.back(), buffers.loss_grad), rule_,
                          std::move(call.updates), max_norm_, call.random ? draw_seed() : 0);
  {
    const py::gil_scoped_release without_gil;
    run_plan(plan);
  }
  *result.mutable_data_ptr<T>() = T(plan.loss());
  for (const Changed& changed : call.changed) {
    changed.param.unsafeGetTensorImpl()->bump_version();
    if (changed.step.defined()) add_one(changed.step);
    for (const Tensor& t : changed.states) {
      if (t.defined()) t.unsafeGetTensorImpl()->bump_version();
    }
    if (changed.first) {
      const py::object own = state[py::handle(changed.object)];
      own["momentum_buffer"] =
          py::reinterpret_steal<py::object>(THPVariable_Wrap(changed.states[0]));
    }
  }
  if (keep_grad) {
    for (const Changed& slot : slots) {
      const Tensor grad = at::empty_like(slot.param).detach();
      const T* from = gradient_of(slot);
      T* to = mutable_data_of<T>(grad);
      for (int64_t i = 0; i < grad.numel(); ++i) to[i] = T(plan.grad_scale()) * from[i];
      slot.param.mutable_grad() = grad;
    }
  }
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(result));
}

py::object TrainStepCore::call(const Tensor& x, const Tensor& y, bool keep_grad) {
  for (const py::dict& hooks : hooks_) {
    TORCH_CHECK(hooks.empty(),
                "a hook was registered on the model or the optimizer after this TrainStep was "
                "made, and would not run: remove it, or go back to the training loop");
  }
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
