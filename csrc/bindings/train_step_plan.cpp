#include "train_step_plan.h"

#include <algorithm>

#include "cpu_kernels.h"
#include "extents.h"

namespace mlp_ext {

namespace py = pybind11;
using at::Tensor;

namespace {

PyObject* state_key() {
  static PyObject* const key = interned("state");
  return key;
}
PyObject* groups_key() {
  static PyObject* const key = interned("param_groups");
  return key;
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

// Why a state has an entry of that name.
std::string reason_for(const std::string& name) {
  for (const auto& [entry, option] : {std::pair("max_exp_avg_sq", "amsgrad"),
                                      {"grad_avg", "centered"},
                                      {"momentum_buffer", "momentum"}}) {
    if (name == entry) {
      return std::string(", which ") + option +
             " calls for: it is made with the rest of the state, so the option cannot be turned on "
             "later";
    }
  }
  return "";
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
  attributes_ = spec_.optimizer.attr("__dict__");
  state_ = attribute(spec_.optimizer, state_key());
  groups_ = attribute(spec_.optimizer, groups_key());
  TORCH_CHECK(PyDict_Check(state_.ptr()) && PyList_Check(groups_.ptr()),
              "TrainStep: the optimizer's state or param_groups is no dict or list");
  const StatesOfParameters states = states_of_parameters(state_);
  containers_.emplace_back(state_);
  containers_.emplace_back(groups_);
  SlotsOfParameters slots;
  for (const Slot& slot : model_.slots) {
    slots.emplace(slot.object, &slot);
  }
  for (const py::handle entry : py::list(groups_)) read_group(entry, states, slots, updates);
  Extents extents;  // two threads must not update the same memory, nor one count it twice
  for (const Slot& slot : model_.slots) extents.add(slot.param());
  for (const Changed& changed : changed_) {
    for (PyObject* const state : changed.states) {
      if (state) extents.add(tensor_of(state));
    }
    for (PyObject* const counter : {changed.step, changed.mu_product}) {
      if (counter) extents.add(tensor_of(counter));
    }
  }
  TORCH_CHECK(!extents.overlap(),
              "TrainStep: two of the model's parameters and the optimizer's states share memory");
  for (const Slot& slot : model_.slots) {
    if (spec_.max_norm == 0 || slots[slot.object] == nullptr) continue;
    step::Update<T> counted{};
    counted.layer = slot.layer, counted.is_bias = slot.is_bias;
    counted.size = slot.param().numel();
    updates.push_back(counted);
  }
}

// strange: of UpdateRule.
template <class T>
void LivePlan<T>::check_options(const char* strange) {
  if (strange == nullptr) return;
  throw py::value_error(std::string("TrainStep: the optimizer's ") + strange +
                        " is out of the range in which the compiled step computes what PyTorch "
                        "does: use the loop");
}

template <class T>
void LivePlan<T>::read_group(const py::handle& entry, const StatesOfParameters& states,
                             SlotsOfParameters& slots, Updates& updates) {
  static PyObject* const kParams = interned("params");
  TORCH_CHECK(PyDict_Check(entry.ptr()), "TrainStep: a group of the optimizer is no dict");
  const Group group(entry.ptr());
  if (asks_for_torch(group)) {
    const std::string flag = is_capturable(group) ? "capturable" : "differentiable";
    throw py::value_error("TrainStep does not take optimizers with " + flag + "=True");
  }
  GroupOptions options(*spec_.rule, group);
  PyObject* const params = group.sequence(kParams);
  TORCH_CHECK(params != nullptr, "TrainStep: a group's params are no list");
  options_.emplace_back(entry);
  for (const auto& option : py::reinterpret_borrow<py::dict>(entry)) {
    if (option.second.ptr() != params) watch_option(option.second);
  }
  containers_.emplace_back(params);
  for (const py::handle object : py::reinterpret_borrow<py::sequence>(params)) {
    const auto slot = slots.find(object.ptr());
    if (slot == slots.end()) {  // no gradient: frozen, or not of this model
      if (is_tensor(object.ptr())) others_.push_back(object.ptr());
      continue;
    }
    if (slot->second == nullptr) {  // torch would step it twice
      throw py::value_error("TrainStep: the optimizer has a parameter twice");
    }
    const auto own = states.find(object.ptr());
    read_parameter(options, *std::exchange(slot->second, nullptr),
                   own != states.end() ? own->second : nullptr, entry.ptr(), updates);
  }
  check_options(options.strange());
}

// Python's and NumPy's numbers are what they are as long as the object is the same; a tensor is
// looked at.
template <class T>
void LivePlan<T>::watch_option(const py::handle& value) {
  PyObject* const object = value.ptr();
  if (PyList_Check(object) || PyTuple_Check(object)) {
    if (PyList_Check(object)) containers_.emplace_back(value);
    for (const py::handle item : py::reinterpret_borrow<py::sequence>(value)) watch_option(item);
    return;
  }
  double number = 0;
  if (read_scalar(object, number)) {
    numbers_.push_back({py::reinterpret_borrow<py::object>(value), number});
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
  if (found == Found::kUnsuited) refuse_state(options, own, param);
  if (found == Found::kIncomplete) {  // unless another thread is making it just now
    try {
      refuse_state(options, own, param);
    } catch (...) {
      why_incomplete_ = std::current_exception();
    }
  }
  if (found != Found::kAll || (state.makes_first_state && !own)) {
    lacks_state_ = true;
    return;
  }
  Changed changed{};
  changed.object = slot.object, changed.own = own, changed.group = group;
  changed.makes_first_state = state.makes_first_state;
  changed.counters.mu_in_float = state.counters.mu_in_float;
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

// Says which tensor is not there, or is none that the compiled step takes. torch makes all that the
// options call for with the state, before the first step, and raises KeyError for what an option
// that is turned on later calls for.
template <class T>
void LivePlan<T>::refuse_state(const GroupOptions& options, PyObject* own, const Tensor& param) {
  const UpdateRule& rule = options.rule;
  const auto look_at = [&](PyObject* key, const auto& is_taken, const std::string& expected) {
    const auto name = py::cast<std::string>(py::handle(key));
    PyObject* const found = PyDict_GetItemWithError(own, key);
    if (found == nullptr) {
      throw py::key_error("TrainStep: the optimizer's state of a parameter has no '" + name + "'" +
                          reason_for(name));
    }
    TORCH_CHECK(is_tensor(found) && is_taken(tensor_of(found)), "TrainStep: the '", name,
                "' of the optimizer's state is ", described(found), "; expected ", expected);
  };
  const auto lies_alike = [&](const Tensor& t) {
    return t.scalar_type() == param.scalar_type() && t.device() == param.device() && is_plain(t) &&
           t.strides() == param.strides();
  };
  const auto counts = [](const Tensor& t) { return is_counter(t, at::Device(at::kCPU)); };
  for (int i = 0; i < kMostStates && rule.states[i].name; ++i) {
    if (!options.uses(i)) continue;
    const bool is_made = i == 0 && rule.makes_first_state;
    if (is_made && !has_entry(own, rule.state_key(i))) continue;
    look_at(rule.state_key(i), lies_alike, "a tensor that lies in memory as its parameter");
  }
  if (rule.counts) look_at(step_key(), counts, "a scalar tensor on cpu");
  if (rule.multiplies) look_at(mu_product_key(), counts, "a scalar tensor on cpu");
  TORCH_CHECK(false, "TrainStep: a state of the optimizer is incomplete");
}

// A tensor of a parameter's state that read_state has found there.
template <class T>
PyObject* LivePlan<T>::see(PyObject* own, PyObject* key) {
  PyObject* const object = PyDict_GetItemWithError(own, key);
  tensors_.emplace_back(object);
  return object;
}

template <class T>
bool LivePlan<T>::holds(bool gathers) {
  if (&table_ != &cpu::kernels() || gathers != gathers_) return false;
  const auto stands = [this](PyObject* key, const py::object& value) {
    return PyDict_GetItemWithError(attributes_.ptr(), key) == value.ptr();
  };
  if (!stands(state_key(), state_) || !stands(groups_key(), groups_)) return false;
  const auto same = [](const auto& seen) { return seen.unchanged(); };
  return std::all_of(model_.containers.begin(), model_.containers.end(), same) &&
         std::all_of(containers_.begin(), containers_.end(), same) &&
         std::all_of(model_.tensors.begin(), model_.tensors.end(), same) &&
         std::all_of(tensors_.begin(), tensors_.end(), same) &&
         std::all_of(numbers_.begin(), numbers_.end(), same) &&
         !any_hooked(model_.parameters, spec_.group != nullptr) &&
         std::all_of(options_.begin(), options_.end(), [this](SeenContainer& group) {
           using Change = SeenContainer::Change;
           const Change change = group.look_again();
           return change == Change::kNone ||
                  (change == Change::kFloats && read_options_again(group.container()));
         });
}

// What a schedule changes at every step. False where that changes more than the options' values.
template <class T>
bool LivePlan<T>::read_options_again(PyObject* group) {
  if (asks_for_torch(Group(group))) return false;
  const GroupOptions options(*spec_.rule, Group(group));
  if (options.strange() != nullptr) return false;
  const auto calls_for_same = [&](const step::AnyRuleArgs& before) {
    bool same = true;
    for (int i = 0; i < kMostStates; ++i) {
      same = same && spec_.rule->uses(before, i) == options.uses(i);
    }
    return same;
  };
  auto& updates = plan_->updates();
  bool checked = false;
  for (size_t i = 0; i < changed_.size(); ++i) {
    if (changed_[i].group != group) continue;
    step::AnyRuleArgs& args = updates[i].args;
    if (!std::exchange(checked, true) && !calls_for_same(args)) return false;
    const auto* const sgd = std::get_if<SgdArgs>(&args);
    const bool first = sgd && sgd->first;
    args = options.args();
    if (sgd) std::get<SgdArgs>(args).first = first;
  }
  return true;
}

template <class T>
int LivePlan<T>::traverse(visitproc visit, void* arg) const {
  Py_VISIT(attributes_.ptr());
  Py_VISIT(state_.ptr());
  Py_VISIT(groups_.ptr());
  if (const int stop = model_.traverse(visit, arg)) return stop;
  if (const int stop = traverse_all(containers_, visit, arg)) return stop;
  if (const int stop = traverse_all(options_, visit, arg)) return stop;
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

template class LivePlan<float>;
template class LivePlan<double>;

}  // namespace mlp_ext
