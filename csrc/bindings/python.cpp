// What takes torch's own headers of Python: see python.h.
#include "python.h"

#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>

#include "tensor_classes.h"

namespace py = pybind11;

namespace mlp_ext {

bool is_tensor(PyObject* object) { return THPVariable_Check(object); }
bool is_exactly_tensor(PyObject* object) { return THPVariable_CheckExact(object); }
const at::Tensor& tensor_of(PyObject* object) { return THPVariable_Unpack(object); }

py::object as_python(const at::Tensor& tensor) {
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(tensor));
}

bool any_hooked(const std::vector<PyObject*>& tensors) {
  // A dictionary of hooks is null or empty without any.
  const auto filled = [](PyObject* hooks) { return hooks && PyObject_IsTrue(hooks) == 1; };
  return std::any_of(tensors.begin(), tensors.end(), [&](PyObject* object) {
    const auto* variable = reinterpret_cast<const THPVariable*>(object);
    return filled(variable->backward_hooks) || filled(variable->post_accumulate_grad_hooks);
  });
}

bool is_foreign_class(const at::Tensor& t) {
  const WithGil gil;
  const py::object tensor = as_python(t);
  const auto is_a = [&tensor](const char* module, const char* name) {
    return py::isinstance(tensor, py::module_::import(module).attr(name));
  };
  return !is_a("torch._subclasses.fake_tensor", "FakeTensor") &&
         !is_a("torch._subclasses.functional_tensor", "FunctionalTensor");
}

}  // namespace mlp_ext
