// torch.optim.SGD's step: its groups and state read and updated in place.
#include "optimizer_groups.h"
#include "optimizer_items.h"
#include "optimizers.h"

namespace mlp_ext {

namespace py = pybind11;
using at::Tensor;

namespace {

StepResult sgd(const py::list& groups, const py::dict& state) {
  static PyObject* const kParams = interned("params");
  static PyObject* const kBuffer = interned("momentum_buffer");

  std::vector<Item<cpu::SgdArgs>> items;
  for (const py::handle entry : groups) {
    const Group group(entry.ptr());
    if (asks_for_torch(group)) return StepResult::kUnsupported;
    const cpu::SgdArgs args = sgd_options(group);
    PyObject* const params = group.sequence(kParams);
    if (params == nullptr) return StepResult::kUnsupported;
    for (const py::handle object : py::reinterpret_borrow<py::sequence>(params)) {
      Item<cpu::SgdArgs> item;
      const Eligible eligible = take_parameter(object.ptr(), item);
      if (eligible == Eligible::kNo) return StepResult::kUnsupported;
      if (eligible == Eligible::kSkip) continue;
      item.args = args;
      if (args.momentum != 0) {
        PyObject* own = parameter_state(state, object.ptr());
        const Tensor* buffer = own ? state_tensor(own, kBuffer) : nullptr;
        if (buffer && !fits(*buffer, "momentum_buffer", item.param, /*strict=*/false)) {
          return StepResult::kUnsupported;
        }
        item.args.first = buffer == nullptr;
        item.states[0] = buffer ? *buffer : Tensor();
      }
      items.push_back(std::move(item));
    }
  }
  if (!prepare(items)) return StepResult::kUnsupported;
  for (auto& item : items) {
    if (item.args.first) item.states[0] = at::empty_like(item.param).detach();
  }
  for (const auto& item : items) {
    if (!item.args.first) continue;
    py::object own = py::reinterpret_steal<py::object>(PyObject_GetItem(state.ptr(), item.key));
    if (!own) throw py::error_already_set();
    const py::object buffer = py::reinterpret_steal<py::object>(THPVariable_Wrap(item.states[0]));
    if (PyObject_SetItem(own.ptr(), kBuffer, buffer.ptr()) != 0) throw py::error_already_set();
  }
  update(items);
  return StepResult::kDone;
}

}  // namespace

int sgd_step(const py::list& groups, const py::dict& state) {
  return result_of([&] { return sgd(groups, state); });
}

}  // namespace mlp_ext
