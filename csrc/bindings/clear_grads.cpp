// optimizer.zero_grad(): torch's own spends a microsecond a parameter on it in Python.
#include "optimizers.h"
#include "param_group.h"

namespace mlp_ext {

namespace py = pybind11;

bool clear_grads(const py::list& groups) {
  static PyObject* const kParams = interned("params");
  for (const bool clearing : {false, true}) {
    for (const py::handle group : groups) {
      PyObject* const params = Group(group.ptr()).sequence(kParams);
      if (params == nullptr) return false;
      for (const py::handle param : py::reinterpret_borrow<py::sequence>(params)) {
        if (clearing) {
          tensor_of(param.ptr()).mutable_grad().reset();
        } else if (!is_exactly_tensor(param.ptr())) {
          return false;
        }
      }
    }
  }
  return true;
}

}  // namespace mlp_ext
