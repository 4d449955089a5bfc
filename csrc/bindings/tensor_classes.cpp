// Asks Python for the class of a tensor: see tensor_classes.h.
#include "tensor_classes.h"

#include <pybind11/pybind11.h>
#include <torch/csrc/utils/pybind.h>

namespace py = pybind11;

namespace mlp_ext {

bool is_foreign_class(const at::Tensor& t) {
  const py::gil_scoped_acquire gil;
  const py::object tensor = py::cast(t);
  const auto is_a = [&tensor](const char* module, const char* name) {
    return py::isinstance(tensor, py::module_::import(module).attr(name));
  };
  return !is_a("torch._subclasses.fake_tensor", "FakeTensor") &&
         !is_a("torch._subclasses.functional_tensor", "FunctionalTensor");
}

}  // namespace mlp_ext
