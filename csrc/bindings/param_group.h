// torch.optim's dictionaries, read in place: a group's options, a parameter's state.
#pragma once

#include "python.h"

namespace mlp_ext {

// A string that is made once and compared by identity from then on.
inline PyObject* interned(const char* text) { return PyUnicode_InternFromString(text); }

struct NotANumber {};

// One of torch.optim's group dictionaries.
class Group {
 public:
  explicit Group(PyObject* dict) : dict_(dict) {}

  PyObject* get(PyObject* key) const {
    PyObject* value = PyDict_GetItemWithError(dict_, key);
    if (value == nullptr) {
      if (PyErr_Occurred()) throw pybind11::error_already_set();
      throw pybind11::key_error(pybind11::cast<std::string>(pybind11::handle(key)));
    }
    return value;
  }
  bool has(PyObject* key) const {
    const int found = PyDict_Contains(dict_, key);
    if (found < 0) throw pybind11::error_already_set();
    return found != 0;
  }
  // group["params"], or null if it is no list or tuple: torch's own loop takes any iterable.
  PyObject* sequence(PyObject* key) const {
    PyObject* value = get(key);
    return PyList_Check(value) || PyTuple_Check(value) ? value : nullptr;
  }
  bool flag(PyObject* key) const { return is_true(get(key)); }
  // Options that older torch releases, or one optimizer of two, do not have.
  bool flag_or_false(PyObject* key) const {
    PyObject* value = PyDict_GetItemWithError(dict_, key);
    if (value == nullptr && PyErr_Occurred()) throw pybind11::error_already_set();
    return value != nullptr && is_true(value);
  }
  double number(PyObject* key) const { return as_double(get(key)); }

  // Throws NotANumber for tensors, whose arithmetic torch does in their own precision.
  static double as_double(PyObject* object) {
    if (!PyFloat_Check(object) && !PyLong_Check(object)) throw NotANumber();
    const double value = PyFloat_AsDouble(object);
    if (value == -1.0 && PyErr_Occurred()) throw pybind11::error_already_set();
    return value;
  }

 private:
  static bool is_true(PyObject* object) {
    const int truth = PyObject_IsTrue(object);
    if (truth < 0) throw pybind11::error_already_set();
    return truth != 0;
  }

  PyObject* dict_;
};

// The tensor under `key` of a parameter's state; null if it is absent or None.
inline const at::Tensor* state_tensor(PyObject* state, PyObject* key) {
  PyObject* value = PyDict_GetItemWithError(state, key);
  if (value == nullptr && PyErr_Occurred()) throw pybind11::error_already_set();
  if (value == nullptr || !is_tensor(value)) return nullptr;
  return &tensor_of(value);
}

inline PyObject* parameter_state(const pybind11::dict& state, PyObject* parameter) {
  PyObject* value = PyDict_GetItemWithError(state.ptr(), parameter);
  if (value == nullptr && PyErr_Occurred()) throw pybind11::error_already_set();
  return value != nullptr && PyDict_Check(value) ? value : nullptr;
}

}  // namespace mlp_ext
