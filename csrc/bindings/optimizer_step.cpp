// The step of any of torch.optim's rules that the kernels have: its groups and state read and
// updated in place.
#include "optimizer_items.h"
#include "optimizers.h"

namespace mlp_ext {

namespace py = pybind11;
using at::Tensor;

namespace {

// state[parameter][name] = the tensor that the step makes. Before the kernels run, so that a
// failure leaves the parameters as they were.
void store_first_states(const UpdateRule& rule, const py::dict& state, std::vector<Item>& items) {
  for (Item& item : items) {
    if (item.makes_first_state) {
      item.states[0] = at::empty_like(item.master.defined() ? item.master : item.param).detach();
    }
  }
  for (const Item& item : items) {
    if (!item.makes_first_state) continue;
    py::object own = py::reinterpret_steal<py::object>(PyObject_GetItem(state.ptr(), item.key));
    if (!own) throw py::error_already_set();
    const py::object made = py::reinterpret_steal<py::object>(THPVariable_Wrap(item.states[0]));
    if (PyObject_SetItem(own.ptr(), rule.state_key(0), made.ptr()) != 0) {
      throw py::error_already_set();
    }
  }
}

bool is_16_bit(const Tensor& t) {
  return t.scalar_type() == at::kBFloat16 || t.scalar_type() == at::kHalf;
}

// Fills in the master weight, to be laid out as the parameter.
Found take_master(PyObject* own, Item& item) {
  static PyObject* const kMaster = interned("master");
  const Tensor* master = own ? state_tensor(own, kMaster) : nullptr;
  if (master == nullptr) return Found::kNoState;
  TORCH_CHECK(master->sizes() == item.param.sizes() && master->device() == item.param.device(),
              "optimizer state 'master' is of shape ", master->sizes(), " on ", master->device(),
              ", but its parameter of shape ", item.param.sizes(), " on ", item.param.device());
  if (master->scalar_type() != at::kFloat || !is_plain(*master) ||
      master->strides() != item.param.strides()) {
    return Found::kUnsuited;
  }
  item.master = *master;
  return Found::kAll;
}

StepResult run(const UpdateRule& rule, const py::list& groups, const py::dict& state) {
  static PyObject* const kParams = interned("params");
  std::vector<Item> items;
  for (const py::handle entry : groups) {
    const Group group(entry.ptr());
    if (asks_for_torch(group)) return StepResult::kUnsupported;
    GroupOptions options(rule, group);
    const bool masters = has_masters(group);
    const bool needs_state = masters || options.needs_state();
    PyObject* const params = group.sequence(kParams);
    if (params == nullptr) return StepResult::kUnsupported;
    items.reserve(items.size() + PySequence_Fast_GET_SIZE(params));
    for (const py::handle object : py::reinterpret_borrow<py::sequence>(params)) {
      Item& item = items.emplace_back();
      const Eligible eligible = take_parameter(object.ptr(), item);
      if (eligible == Eligible::kNo) return StepResult::kUnsupported;
      if (eligible == Eligible::kSkip) {
        items.pop_back();
        continue;
      }
      PyObject* own = needs_state ? parameter_state(state, object.ptr()) : nullptr;
      Found found = masters && is_16_bit(item.param) ? take_master(own, item) : Found::kAll;
      if (found == Found::kAll) {
        found = read_state(options, own, item.master.defined() ? item.master : item.param, item);
      }
      if (found == Found::kNoState) return StepResult::kMissingState;
      if (found != Found::kAll) return StepResult::kUnsupported;
    }
  }
  if (!prepare(items)) return StepResult::kUnsupported;
  store_first_states(rule, state, items);
  for (const Item& item : items) item.count();
  update(items);
  return StepResult::kDone;
}

}  // namespace

int optimizer_step(const UpdateRule& rule, const py::list& groups, const py::dict& state) {
  try {
    return static_cast<int>(run(rule, groups, state));
  } catch (const NotANumber&) {
    return static_cast<int>(StepResult::kUnsupported);
  }
}

}  // namespace mlp_ext
