// What is watched, as Python has it. A part of module.cpp, the one file that sees all of pybind11.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "surroundings.h"

namespace mlp_ext {

namespace py = pybind11;

inline PyObject* call_as_usual(PyObject*, PyObject* const* args, Py_ssize_t n) {
  const unsigned long parts = n == 0 ? kLayers | kLosses : PyLong_AsUnsignedLongMask(args[0]);
  if (PyErr_Occurred()) return nullptr;
  for (Py_ssize_t i = 1; i < n; ++i) {
    if (args[i] != Py_None && !is_exactly_tensor(args[i])) Py_RETURN_FALSE;
  }
  return PyBool_FromLong(as_usual(static_cast<unsigned>(parts)));
}

inline PyMethodDef kAsUsual = {
    "as_usual", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call_as_usual)),
    METH_FASTCALL,
    "(parts=all, *tensors) -> whether nothing is in the way of these parts, and "
    "each of the tensors is one, of no class that may want to see torch's "
    "functions, or None"};

inline void bind_surroundings(py::module_& m) {
  m.attr("PART_LAYERS") = static_cast<unsigned>(kLayers);
  m.attr("PART_LOSSES") = static_cast<unsigned>(kLosses);
  // No pybind11 function, which takes longer than what it asks; called for each call of a model.
  m.add_object("as_usual", py::reinterpret_steal<py::object>(PyCFunction_New(&kAsUsual, nullptr)));
  m.def("what_is_unusual", &what_is_unusual, py::arg("parts") = kLayers | kLosses);
  m.def("watch", [](unsigned part, const py::object& owner, const std::string& name,
                    const py::module_& home) { watch(part, owner.ptr(), name, home.ptr()); });
  m.def("watch_hooks", [](const py::module_& module, const std::string& name) {
    watch_hooks(module.ptr(), name);
  });
  m.def("allow_mode", [](const py::type& type) { allow_mode(type.ptr()); });
}

}  // namespace mlp_ext
