#include "train_step_plan.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>

#include <cmath>

#include "cpu_kernels.h"
#include "extents.h"

namespace mlp_ext {

namespace py = pybind11;
using at::Tensor;

namespace {

// The seed of a step's Dropouts, from PyTorch's default generator: manual_seed makes a run
// reproducible.
uint64_t draw_seed() {
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard<std::mutex> lock(generator.mutex());
  return at::check_generator<at::CPUGeneratorImpl>(generator)->random64();
}

py::object state_of(const py::object& optimizer) {
  static PyObject* const kState = interned("state");
  return attribute(optimizer, kState);
}
py::object groups_of(const py::object& optimizer) {
  static PyObject* const kParamGroups = interned("param_groups");
  return attribute(optimizer, kParamGroups);
}

// Laid out as `t`, of which a side of length 1 may have any stride. Not by the dispatcher, where a
// mode may run Python code.
template <class T>
Tensor empty_like(const Tensor& t) {
  return at::detail::empty_strided_cpu(t.sizes(), t.strides(), kType<T>);
}

// Of what a step has written to, past autograd; null: nothing.
void bump_version(PyObject* tensor) {
  if (tensor) tensor_of(tensor).unsafeGetTensorImpl()->bump_version();
}

// The entries of the optimizer's state, found by their parameter's identity. A look-up would hash
// the tensor in Python code, where other threads and signal handlers get their turn.
StatesOfParameters states_of_parameters(const py::dict& state) {
  StatesOfParameters found;
  for (const auto& [parameter, own] : state) {
    if (PyDict_Check(own.ptr())) found.emplace(parameter.ptr(), own.ptr());
  }
  return found;
}

}  // namespace

template <class T>
LivePlan<T>::LivePlan(const StepSpec& spec, bool gathers, step::Arena<T>& arena)
    : spec_(spec),
      table_(cpu::kernels()),
      model_(spec.layers, kType<T>, spec.group != nullptr),
      gathers_(gathers) {
  if (spec.group) spec.group->check(model_.grad_sizes, kType<T>);
  Updates updates;
  read_optimizer(updates);
  if (lacks_state_) return;
  plan_ = std::make_unique<step::TrainStep<T>>(table_, spec.bf16, model_.layers, std::move(updates),
                                               spec.max_norm, gathers,
                                               spec.group ? spec.group->processes() : 1, arena);
}

template <class T>
void LivePlan<T>::read_optimizer(Updates& updates) {
  state_ = state_of(spec_.optimizer);
  groups_ = groups_of(spec_.optimizer);
  TORCH_CHECK(PyDict_Check(state_.ptr()) && PyList_Check(groups_.ptr()),
              "TrainStep: the optimizer's state or param_groups is no dict or list");
  const StatesOfParameters states = states_of_parameters(state_);
  containers_.emplace_back(state_);
  containers_.emplace_back(groups_);
  Extents extents;  // two threads must not update the same memory
  SlotsOfParameters slots;
  for (const Slot& slot : model_.slots) {
    extents.add(slot.param());
    slots.emplace(slot.object, &slot);
  }
  TORCH_CHECK(!extents.overlap(), "TrainStep: two parameters of the model share memory");
  for (const py::handle entry : py::list(groups_)) read_group(entry, states, slots, updates);
  if (spec_.max_norm == 0) return;
  for (const Changed& changed : changed_) slots.erase(changed.object);
  for (const Slot& slot : model_.slots) {
    if (slots.count(slot.object) == 0) continue;
    step::Update<T> counted{};
    counted.layer = slot.layer, counted.is_bias = slot.is_bias;
    counted.size = slot.param().numel();
    updates.push_back(counted);
  }
}

template <class T>
void LivePlan<T>::read_group(const py::handle& entry, const StatesOfParameters& states,
                             const SlotsOfParameters& slots, Updates& updates) {
  static PyObject* const kParams = interned("params");
  TORCH_CHECK(PyDict_Check(entry.ptr()), "TrainStep: a group of the optimizer is no dict");
  const Group group(entry.ptr());
  if (asks_for_torch(group)) {
    throw py::value_error("TrainStep does not take differentiable or capturable optimizers");
  }
  GroupOptions options(*spec_.rule, group);
  PyObject* const params = group.sequence(kParams);
  TORCH_CHECK(params != nullptr, "TrainStep: a group's params are no list");
  containers_.emplace_back(entry);
  for (const auto& option : py::reinterpret_borrow<py::dict>(entry)) {
    if (option.second.ptr() != params) watch_option(option.second);
  }
  containers_.emplace_back(params);
  for (const py::handle object : py::reinterpret_borrow<py::sequence>(params)) {
    const auto slot = slots.find(object.ptr());
    if (slot == slots.end()) continue;  // no gradient: frozen, or not of this model
    const auto own = states.find(object.ptr());
    read_parameter(options, *slot->second, own != states.end() ? own->second : nullptr, entry.ptr(),
                   updates);
  }
}

// Numbers of Python are what they are as long as the object is the same; others are looked at.
template <class T>
void LivePlan<T>::watch_option(const py::handle& value) {
  PyObject* const object = value.ptr();
  if (PyList_Check(object) || PyTuple_Check(object)) {
    if (PyList_Check(object)) containers_.emplace_back(value);
    for (const py::handle item : py::reinterpret_borrow<py::sequence>(value)) watch_option(item);
    return;
  }
  const bool is_fixed = object == Py_None || PyFloat_CheckExact(object) ||
                        PyLong_CheckExact(object) || PyBool_Check(object) ||
                        PyUnicode_Check(object);
  if (is_fixed) return;
  try {
    numbers_.push_back({py::reinterpret_borrow<py::object>(value), Group::as_double(object)});
  } catch (const NotANumber&) {  // no option that the rule reads
  }
}

template <class T>
void LivePlan<T>::read_parameter(GroupOptions& options, const Slot& slot, PyObject* own,
                                 const void* group, Updates& updates) {
  const UpdateRule& rule = *spec_.rule;
  const Tensor& param = slot.param();
  if (own != nullptr) containers_.emplace_back(own);
  ParameterState state;
  const Found found = read_state(options, own, param, state);
  TORCH_CHECK(found != Found::kUnsuited,
              "TrainStep: the optimizer's state of a parameter is of another type, lies in memory "
              "otherwise than the parameter, or its step is no scalar tensor on cpu");
  if (found != Found::kAll || (state.makes_first_state && !own)) {
    lacks_state_ = true;
    return;
  }
  Changed changed{};
  changed.object = slot.object, changed.own = own, changed.group = group;
  changed.makes_first_state = state.makes_first_state;
  step::Update<T> update{};
  update.layer = slot.layer, update.is_bias = slot.is_bias;
  update.param = static_cast<T*>(slot.data);
  update.size = param.numel();
  update.args = state.args;
  for (int i = 0; i < kMostStates; ++i) {
    if (!state.states[i].defined()) continue;
    changed.states[i] = see(own, rule.state_key(i));
    update.states[i] = mutable_data_of<T>(state.states[i]);
  }
  if (state.step.defined()) changed.step = see(own, step_key());
  if (state.mu_product.defined()) changed.mu_product = see(own, mu_product_key());
  updates.push_back(update);
  changed_.push_back(std::move(changed));
}

// A tensor of a parameter's state that read_state has found there.
template <class T>
PyObject* LivePlan<T>::see(PyObject* own, PyObject* key) {
  PyObject* const object = PyDict_GetItemWithError(own, key);
  tensors_.emplace_back(object);
  return object;
}

template <class T>
bool LivePlan<T>::unchanged(bool gathers) const {
  if (&table_ != &cpu::kernels() || gathers != gathers_) return false;
  if (state_of(spec_.optimizer).ptr() != state_.ptr()) return false;
  if (groups_of(spec_.optimizer).ptr() != groups_.ptr()) return false;
  const auto same = [](const auto& seen) { return seen.unchanged(); };
  const bool in_group = spec_.group != nullptr;
  return std::all_of(model_.containers.begin(), model_.containers.end(), same) &&
         std::all_of(containers_.begin(), containers_.end(), same) &&
         std::all_of(model_.tensors.begin(), model_.tensors.end(), same) &&
         std::all_of(tensors_.begin(), tensors_.end(), same) &&
         std::all_of(numbers_.begin(), numbers_.end(), same) &&
         std::none_of(model_.parameters.begin(), model_.parameters.end(),
                      [&](PyObject* p) { return hook_on(p, in_group) != nullptr; });
}

template <class T>
int LivePlan<T>::traverse(visitproc visit, void* arg) const {
  Py_VISIT(state_.ptr());
  Py_VISIT(groups_.ptr());
  if (const int stop = model_.traverse(visit, arg)) return stop;
  if (const int stop = traverse_all(containers_, visit, arg)) return stop;
  if (const int stop = traverse_all(tensors_, visit, arg)) return stop;
  return traverse_all(numbers_, visit, arg);
}

template <class T>
void LivePlan<T>::check_input(const Tensor& matrix, const Tensor& x) const {
  TORCH_CHECK(matrix.dim() == 2 && matrix.size(1) == in_features(),
              "TrainStep got an input of shape ", x.sizes(), "; expected (batch, ", in_features(),
              ")");
}

template <class T>
void LivePlan<T>::check_rows(int64_t rows) const {
  TORCH_CHECK_VALUE(rows > 1 || model_.batch_norm == nullptr,
                    "Expected more than 1 value per channel when training, got a batch of ", rows,
                    " at '", model_.batch_norm ? model_.batch_norm : "", "'");
}

template <class T>
void LivePlan<T>::begin(int64_t rows, bool keep_grad) {
  plan_->lay_out(rows);
  grads_.clear();
  for (const Slot& slot : model_.slots) {
    if (keep_grad) grads_.push_back(empty_like<T>(slot.param()));
  }
  auto& updates = plan_->updates();
  for (size_t i = 0; i < changed_.size(); ++i) {
    Changed& changed = changed_[i];
    if (changed.makes_first_state && !changed.first_state.defined()) {
      changed.first_state = empty_like<T>(tensor_of(changed.object));
      updates[i].states[0] = mutable_data_of<T>(changed.first_state);
    }
    if (changed.step) changed.counters.step = counter_value(tensor_of(changed.step));
    if (changed.mu_product) {
      changed.counters.mu_product = counter_value(tensor_of(changed.mu_product));
    }
  }
}

template <class T>
void LivePlan<T>::next() {
  auto& updates = plan_->updates();
  for (size_t i = 0; spec_.rule->counts && i < changed_.size(); ++i) {
    Changed& changed = changed_[i];
    // Mostly all parameters of a group have the same counters.
    const Changed* const before = i > 0 ? &changed_[i - 1] : nullptr;
    if (before && before->group == changed.group && before->counters.same_as(changed.counters)) {
      changed.next = before->next;
      updates[i].args = updates[i - 1].args;
      continue;
    }
    changed.next = changed.counters;
    ++changed.next.step;
    spec_.rule->at_step(updates[i].args, changed.next);
  }
  if (model_.is_random) plan_->set_seed(draw_seed());
  plan_->prepare();
}

template <class T>
void LivePlan<T>::run(const std::function<void()>& host_loss) {
  plan_->set_host_loss(bool(host_loss));
  if (!spec_.group && !host_loss) return run_plan(*plan_);
  std::function<void()> exchange;
  if (spec_.group) exchange = [&] { spec_.group->add_up(plan_->exchange()); };
  run_plan(*plan_, host_loss, exchange);
}

template <class T>
void LivePlan<T>::advance() {
  for (size_t i = 0; i < changed_.size(); ++i) {
    if (spec_.rule->counts) {
      changed_[i].counters = changed_[i].next;
    } else if (changed_[i].makes_first_state) {
      std::get<SgdArgs>(plan_->updates()[i].args).first = false;
    }
  }
  for (const RunningStatistics<T>& moving : model_.running) {
    const step::LayerBuffers<T>& buffers = plan_->buffers(moving.layer);
    const double rows = double(plan_->rows());
    double momentum = moving.momentum;
    if (moving.batches_data != nullptr) {
      const int64_t count = ++*moving.batches_data;
      if (std::isnan(momentum)) momentum = 1.0 / double(count);
    }
    T* const mean = moving.mean_data;
    T* const variance = moving.variance_data;
    for (int64_t n = 0; n < plan_->layers()[moving.layer].out; ++n) {
      const double unbiased = buffers.variance[n] * (rows / (rows - 1));
      mean[n] = T(momentum * buffers.mean[n] + (1 - momentum) * mean[n]);
      variance[n] = T(momentum * unbiased + (1 - momentum) * variance[n]);
    }
  }
}

template <class T>
void LivePlan<T>::end(int64_t steps) {
  if (steps == 0) return;
  keep_gradients();
  if (!std::exchange(told_, true)) {
    // An LR scheduler warns if no step was taken before it, and looks here.
    spec_.optimizer.attr("_opt_called") = true;
  }
  for (Changed& changed : changed_) {
    bump_version(changed.object);
    for (PyObject* const state : changed.states) bump_version(state);
    if (changed.step) set_counter(tensor_of(changed.step), changed.counters.step);
    if (changed.mu_product) set_counter(tensor_of(changed.mu_product), changed.counters.mu_product);
    if (!std::exchange(changed.makes_first_state, false)) continue;
    const py::object made = as_python(std::exchange(changed.first_state, {}));
    if (PyDict_SetItem(changed.own, spec_.rule->state_key(0), made.ptr()) != 0) {
      throw py::error_already_set();
    }
  }
  for (const RunningStatistics<T>& moving : model_.running) {
    for (PyObject* const object : {moving.mean, moving.variance, moving.batches}) {
      bump_version(object);
    }
  }
}

template <class T>
void LivePlan<T>::keep_gradients() {
  const T scale = T(plan_->grad_scale());
  for (size_t g = 0; g < grads_.size(); ++g) {
    const Slot& slot = model_.slots[g];
    const step::LayerBuffers<T>& buffers = plan_->buffers(slot.layer);
    const T* from = slot.is_bias ? buffers.db : buffers.dw;
    T* to = mutable_data_of<T>(grads_[g]);
    for (int64_t i = 0; i < grads_[g].numel(); ++i) to[i] = scale * from[i];
    slot.param().mutable_grad() = std::exchange(grads_[g], {});
  }
}

template class LivePlan<float>;
template class LivePlan<double>;

}  // namespace mlp_ext
