// The data loader's gathering, as Python has it. A part of module.cpp, the one file that sees all
// of pybind11.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>

#include "gathering.h"

namespace mlp_ext {

namespace py = pybind11;

inline PyObject* call_gather(PyObject*, PyObject* const* args, Py_ssize_t n) {
  HANDLE_TH_ERRORS
  if (n != 2 || !is_tensor(args[1])) throw torch::TypeError("gather takes tensors and an index");
  return gather(args[0], tensor_of(args[1])).release().ptr();
  END_HANDLE_TH_ERRORS
}

inline PyMethodDef kGather = {
    "gather", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call_gather)),
    METH_FASTCALL, "(tensors, index) -> a list, or None"};

inline void bind_data(py::module_& m) {
  m.def("why_not_gathered", [](const py::object& held) { return why_not_gathered(held.ptr()); });
  m.add_object("gather", py::reinterpret_steal<py::object>(PyCFunction_New(&kGather, nullptr)));
}

}  // namespace mlp_ext
