// The step of any of torch.optim's rules that the kernels have: its groups and state read and
// updated in place.
#include "optimizer_cuda.h"
#include "optimizer_items.h"
#include "optimizers.h"

#include <optional>

namespace mlp_ext {

namespace py = pybind11;
using at::Tensor;

namespace {

// Where the step's first states are to be put, found before anything changes: state[parameter],
// which raises KeyError if `state` is a plain dict without it.
void find_places_of_first_states(PyObject* state, std::vector<Item>& items) {
  for (Item& item : items) {
    if (!item.makes_first_state || item.own) continue;
    item.own = py::reinterpret_steal<py::object>(PyObject_GetItem(state, item.key));
    if (!item.own) throw py::error_already_set();
  }
}

// Once the kernels have run. Not before, as another thread's step would take what has no value yet
// for the average of all gradients so far.
void store_first_states(const UpdateRule& rule, const std::vector<Item>& items) {
  for (const Item& item : items) {
    if (!item.makes_first_state) continue;
    const py::object made = as_python(item.states[0]);
    if (PyObject_SetItem(item.own.ptr(), rule.state_key(0), made.ptr()) != 0) {
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
  check_memory(*master, "a master weight");
  item.master = *master;
  return Found::kAll;
}

// The options of one group, and what else of it decides how its parameters are stepped.
struct GroupStep {
  const Group& group;
  Tensor lr;  // defined for a tensor on CUDA
  GroupOptions options;
  bool masters = has_masters(group), capturable = is_capturable(group);
  bool needs_state = masters || options.needs_state();

  GroupStep(const UpdateRule& rule, const Group& group) : group(group), options(rule, group, &lr) {}

  // Whether the kernels of the parameter's device have all that these options ask for. Throws
  // nothing for what torch refuses: that is left to torch.
  bool takes(bool on_cuda, bool scaled) {
    if (!on_cuda) return !capturable && !lr.defined() && !scaled;
    if (!cuda_) cuda_ = read_cuda();
    if (scaled && !cuda_->fused) return false;
    return cuda_->takes && (!lr.defined() || !options.rule.counts || counts_on_cuda());
  }
  bool counts_on_cuda() const { return capturable || cuda_->fused; }

 private:
  struct Cuda {
    bool fused, takes;
  };
  Cuda read_cuda() const {
    // In a capture without `capturable` torch's step raises, where the class has that option.
    const bool refuses = !capturable && may_be_capturable(group) && is_capturing();
    return {is_fused(group), !refuses};
  }

  std::optional<Cuda> cuda_;
};

// One float32 number that the kernels can read; undefined for None. False for anything else.
bool read_scalar(const py::handle& object, Tensor& result) {
  if (object.is_none()) return true;
  if (!is_tensor(object.ptr())) return false;
  result = tensor_of(object.ptr());
  return result.numel() == 1 && result.scalar_type() == at::kFloat && is_plain(result);
}

StepResult run(const UpdateRule& rule, PyObject* groups, PyObject* state, const Scaling& scaling) {
  static PyObject* const kParams = interned("params");
  if (!reads_as_sequence(groups) || !reads_as_dict(state)) return StepResult::kUnsupported;
  std::vector<Item> items, on_cuda;
  std::vector<Tensor> lr;
  // By index, and with references held: to look up a parameter's state runs Tensor.__hash__, where
  // another thread may change these lists.
  for (Py_ssize_t g = 0; g < PySequence_Fast_GET_SIZE(groups); ++g) {
    const auto entry = py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(groups, g));
    if (!reads_as_dict(entry.ptr())) return StepResult::kUnsupported;
    const Group group(entry.ptr());
    if (is_differentiable(group)) return StepResult::kUnsupported;
    GroupStep how(rule, group);
    if (how.options.strange()) return StepResult::kUnsupported;
    lr.push_back(how.lr);
    const auto params = py::reinterpret_borrow<py::object>(group.sequence(kParams));
    if (!params) return StepResult::kUnsupported;
    items.reserve(items.size() + PySequence_Fast_GET_SIZE(params.ptr()));
    for (Py_ssize_t p = 0; p < PySequence_Fast_GET_SIZE(params.ptr()); ++p) {
      const auto object =
          py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(params.ptr(), p));
      Item& item = items.emplace_back();
      const Eligible eligible = take_parameter(object.ptr(), item);
      if (eligible == Eligible::kNo) return StepResult::kUnsupported;
      if (eligible == Eligible::kSkip) {
        items.pop_back();
        continue;
      }
      const bool is_cuda = is_cuda_kernel_device(item.param.device());
      if (!how.takes(is_cuda, scaling.any())) return StepResult::kUnsupported;
      // The gradient itself is to be unscaled, and not its copy.
      if (scaling.grad_scale.defined() && item.grad.strides() != item.param.strides()) {
        return StepResult::kUnsupported;
      }
      if (how.needs_state && !parameter_state(state, object.ptr(), item.own)) {
        return StepResult::kUnsupported;
      }
      PyObject* const own = item.own.ptr();
      Found found = how.masters && is_16_bit(item.param) ? take_master(own, item) : Found::kAll;
      if (found == Found::kAll) {
        found = read_state(how.options, own, item.master.defined() ? item.master : item.param, item,
                           is_cuda && how.counts_on_cuda());
      }
      if (found == Found::kNoState) return StepResult::kMissingState;
      if (found != Found::kAll || how.options.strange()) return StepResult::kUnsupported;
      if (is_cuda) {
        item.group = static_cast<int>(lr.size()) - 1;
        on_cuda.push_back(std::move(item));
        items.pop_back();
      }
    }
  }
  const bool zeroed = scaling.found_inf.defined(), writes_grads = scaling.grad_scale.defined();
  for (auto* some : {&items, &on_cuda}) {
    if (!prepare(*some, zeroed, writes_grads)) return StepResult::kUnsupported;
    find_places_of_first_states(state, *some);
  }
  {
    const WithoutGil without_gil;
    if (!on_cuda.empty()) update_cuda(on_cuda, lr, scaling);  // first: a launch may fail
    if (!items.empty()) update(items);
  }
  for (const auto* some : {&items, &on_cuda}) {
    for (const Item& item : *some) item.count();
    store_first_states(rule, *some);
  }
  return StepResult::kDone;
}

}  // namespace

int optimizer_step(const UpdateRule& rule, const py::object& groups, const py::object& state,
                   const py::object& grad_scale, const py::object& found_inf) {
  Scaling scaling;
  if (!read_scalar(grad_scale, scaling.grad_scale) || !read_scalar(found_inf, scaling.found_inf)) {
    return static_cast<int>(StepResult::kUnsupported);
  }
  try {
    return static_cast<int>(run(rule, groups.ptr(), state.ptr(), scaling));
  } catch (const NotANumber&) {
    return static_cast<int>(StepResult::kUnsupported);
  } catch (const py::key_error&) {  // a group without an option: torch's step says so
    return static_cast<int>(StepResult::kUnsupported);
  }
}

}  // namespace mlp_ext
