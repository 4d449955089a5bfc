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
    : spec_(spec), table_(cpu::kernels()), model_(spec.layers, kType<T>), gathers_(gathers) {
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
  for (const Slot& slot : model_.slots) extents.add(slot.param);
  TORCH_CHECK(!extents.overlap(), "TrainStep: two parameters of the model share memory");
  for (const py::handle entry : py::list(groups_)) read_group(entry, states, updates);
  for (const Slot& slot : model_.slots) {
    if (spec_.max_norm == 0) break;
    const bool updated = std::any_of(changed_.begin(), changed_.end(),
                                     [&](const Changed& c) { return c.object == slot.object; });
    if (updated) continue;
    step::Update<T> counted{};
    counted.layer = slot.layer, counted.is_bias = slot.is_bias;
    counted.size = slot.param.numel();
    updates.push_back(counted);
  }
}

template <class T>
void LivePlan<T>::read_group(const py::handle& entry, const StatesOfParameters& states,
                             Updates& updates) {
  static PyObject* const kParams = interned("params");
  const Group group(entry.ptr());
  if (asks_for_torch(group)) {
    throw py::value_error("TrainStep does not take differentiable or capturable optimizers");
  }
  GroupOptions options(*spec_.rule, group);
  PyObject* const params = group.sequence(kParams);
  TORCH_CHECK(params != nullptr, "TrainStep: a group's params are no list");
  containers_.emplace_back(entry);
  for (const auto& option : py::reinterpret_borrow<py::dict>(entry)) {
    if (PyList_Check(option.second.ptr())) containers_.emplace_back(option.second);
  }
  if (!PyList_Check(params)) containers_.emplace_back(params);
  for (const py::handle object : py::reinterpret_borrow<py::sequence>(params)) {
    const auto slot =
        std::find_if(model_.slots.begin(), model_.slots.end(),
                     [&](const Slot& candidate) { return candidate.object == object.ptr(); });
    if (slot == model_.slots.end()) continue;  // no gradient: frozen, or not of this model
    const auto own = states.find(object.ptr());
    PyObject* const state = own != states.end() ? own->second : nullptr;
    Changed changed{{}, object.ptr(), {}, slot->param, entry.ptr(), {}};
    if (state != nullptr) {
      containers_.emplace_back(state);
      changed.own = py::reinterpret_borrow<py::object>(state);
    }
    const Found found = read_state(options, state, slot->param, changed);
    TORCH_CHECK(
        found != Found::kUnsuited,
        "TrainStep: the optimizer's state of a parameter is of another type, lies in memory "
        "otherwise than the parameter, or its step is no scalar tensor on cpu");
    if (found != Found::kAll || (changed.makes_first_state && !state)) lacks_state_ = true;
    step::Update<T> update{};
    update.layer = slot->layer, update.is_bias = slot->is_bias;
    update.param = static_cast<T*>(slot->data);
    update.size = slot->param.numel();
    update.args = changed.args;
    for (int i = 0; i < kMostStates; ++i) {
      if (!changed.states[i].defined()) continue;
      update.states[i] = mutable_data_of<T>(changed.states[i]);
      tensors_.emplace_back(changed.states[i]);
    }
    for (const Tensor& counter : {changed.step, changed.mu_product}) {
      if (counter.defined()) tensors_.emplace_back(counter);
    }
    updates.push_back(update);
    changed_.push_back(std::move(changed));
  }
}

template <class T>
bool LivePlan<T>::unchanged(bool gathers) const {
  if (&table_ != &cpu::kernels() || gathers != gathers_) return false;
  if (state_of(spec_.optimizer).ptr() != state_.ptr()) return false;
  if (groups_of(spec_.optimizer).ptr() != groups_.ptr()) return false;
  const auto same = [](const auto& seen) { return seen.unchanged(); };
  return std::all_of(model_.containers.begin(), model_.containers.end(), same) &&
         std::all_of(containers_.begin(), containers_.end(), same) &&
         std::all_of(model_.tensors.begin(), model_.tensors.end(), same) &&
         std::all_of(tensors_.begin(), tensors_.end(), same) && !any_hooked(model_.parameters);
}

template <class T>
void LivePlan<T>::check_input(const Tensor& x) const {
  TORCH_CHECK(x.dim() == 2 && x.size(1) == in_features(), "TrainStep got an input of shape ",
              x.sizes(), "; expected (batch, ", in_features(), ")");
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
    if (keep_grad) grads_.push_back(empty_like<T>(slot.param));
  }
  auto& updates = plan_->updates();
  for (size_t i = 0; i < changed_.size(); ++i) {
    Changed& changed = changed_[i];
    if (changed.makes_first_state && !changed.states[0].defined()) {
      changed.states[0] = empty_like<T>(changed.param);
      updates[i].states[0] = mutable_data_of<T>(changed.states[0]);
    }
    if (changed.step.defined()) changed.counters.step = counter_value(changed.step);
    if (changed.mu_product.defined()) {
      changed.counters.mu_product = counter_value(changed.mu_product);
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
void LivePlan<T>::run() {
  if (!spec_.group) return run_plan(*plan_);
  run_plan(*plan_, [&] { spec_.group->add_up(plan_->exchange()); });
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
    bump_versions(changed.param, changed);
    changed.count();
    if (!std::exchange(changed.makes_first_state, false)) continue;
    changed.own[py::handle(spec_.rule->state_key(0))] = as_python(changed.states[0]);
  }
  for (const RunningStatistics<T>& moving : model_.running) {
    for (const Tensor& t : {moving.mean, moving.variance, moving.batches}) {
      if (t.defined()) t.unsafeGetTensorImpl()->bump_version();
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
    slot.param.mutable_grad() = std::exchange(grads_[g], {});
  }
}

template class LivePlan<float>;
template class LivePlan<double>;

}  // namespace mlp_ext
