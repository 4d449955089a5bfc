// torch.optim.Adam's and AdamW's step: their groups and state read and updated in place.
#include "optimizer_groups.h"
#include "optimizer_items.h"
#include "optimizers.h"

namespace mlp_ext {

namespace py = pybind11;
using at::Tensor;

namespace {

StepResult adam(const py::list& groups, const py::dict& state) {
  static PyObject* const kParams = interned("params");
  static PyObject* const kStep = interned("step");
  static const char* const kStateNames[] = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"};
  static PyObject* const kStates[] = {interned(kStateNames[0]), interned(kStateNames[1]),
                                      interned(kStateNames[2])};

  std::vector<Item<cpu::AdamArgs>> items;
  std::vector<Tensor> steps;
  for (const py::handle entry : groups) {
    const Group group(entry.ptr());
    if (asks_for_torch(group)) return StepResult::kUnsupported;
    cpu::AdamArgs args = adam_options(group);
    double last_step = -1;
    PyObject* const params = group.sequence(kParams);
    if (params == nullptr) return StepResult::kUnsupported;
    for (const py::handle object : py::reinterpret_borrow<py::sequence>(params)) {
      Item<cpu::AdamArgs> item;
      const Eligible eligible = take_parameter(object.ptr(), item);
      if (eligible == Eligible::kNo) return StepResult::kUnsupported;
      if (eligible == Eligible::kSkip) continue;
      PyObject* own = parameter_state(state, object.ptr());
      if (own == nullptr || PyDict_Size(own) == 0) return StepResult::kMissingState;
      for (int i = 0; i < (args.amsgrad ? 3 : 2); ++i) {
        const Tensor* moment = state_tensor(own, kStates[i]);
        if (!moment || !fits(*moment, kStateNames[i], item.param, /*strict=*/true)) {
          return StepResult::kUnsupported;
        }
        item.states[i] = *moment;
      }
      const Tensor* step = state_tensor(own, kStep);
      if (!is_step_count(step)) return StepResult::kUnsupported;
      const double count = step_count(*step) + 1;
      if (count != last_step) {
        set_step(args, count);
        last_step = count;
      }
      item.args = args;
      items.push_back(std::move(item));
      steps.push_back(*step);
    }
  }
  if (!prepare(items)) return StepResult::kUnsupported;
  for (const Tensor& step : steps) add_to_count(step);
  update(items);
  return StepResult::kDone;
}

}  // namespace

int adam_step(const py::list& groups, const py::dict& state) {
  return result_of([&] { return adam(groups, state); });
}

}  // namespace mlp_ext
