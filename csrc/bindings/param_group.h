// torch.optim's containers and dictionaries, read in place: a group's options, a parameter's state.
#pragma once

#include <cstring>
#include <string>

#include "python.h"

namespace mlp_ext {

// A string that is made once and compared by identity from then on.
inline PyObject* interned(const char* text) { return PyUnicode_InternFromString(text); }

// A list or tuple that may be read without asking it: no subclass iterates in a way of its own.
inline bool reads_as_sequence(PyObject* object) {
  if (PyList_Check(object)) return Py_TYPE(object)->tp_iter == PyList_Type.tp_iter;
  return PyTuple_Check(object) && Py_TYPE(object)->tp_iter == PyTuple_Type.tp_iter;
}

// The same of a dict: subclasses, as OrderedDict and defaultdict, that look up as dict does.
inline bool reads_as_dict(PyObject* object) {
  if (!PyDict_Check(object)) return false;
  const auto subscript = [](PyTypeObject* type) { return type->tp_as_mapping->mp_subscript; };
  if (subscript(Py_TYPE(object)) == subscript(&PyDict_Type)) return true;
  // Python makes another function for each subclass in Python, whatever that defines.
  const auto look_up_of = [](PyTypeObject* type) {
    return pybind11::reinterpret_steal<pybind11::object>(
        PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__getitem__"));
  };
  const pybind11::object own = look_up_of(Py_TYPE(object)), dicts = look_up_of(&PyDict_Type);
  if (!own || !dicts) PyErr_Clear();
  return own && own.is(dicts);
}

// An option that is no number, or none that the kernels compute with as torch does.
struct NotANumber {
  std::string option;  // its key in the group
  pybind11::object received;
};

// One of torch.optim's group dictionaries.
class Group {
 public:
  // dict: one that reads_as_dict.
  explicit Group(PyObject* dict) : dict_(dict) {}

  PyObject* get(PyObject* key) const {
    PyObject* value = PyDict_GetItemWithError(dict_, key);
    if (value == nullptr) {
      if (PyErr_Occurred()) throw pybind11::error_already_set();
      throw pybind11::key_error(text_of(key));
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
    return reads_as_sequence(value) ? value : nullptr;
  }
  bool flag(PyObject* key) const { return is_true(get(key), key); }
  // Options that older torch releases, or one optimizer of two, do not have.
  bool flag_or_false(PyObject* key) const {
    PyObject* value = PyDict_GetItemWithError(dict_, key);
    if (value == nullptr && PyErr_Occurred()) throw pybind11::error_already_set();
    return value != nullptr && is_true(value, key);
  }
  double number(PyObject* key) const { return named(key, get(key)); }
  // `object`, which was found under `key`. Not True: torch computes with it here, and raises there
  // (as alpha=, say).
  static double named(PyObject* key, PyObject* object) {
    double value = 0;
    if (object == Py_True || !read_number(object, value)) throw not_a_number(key, object);
    return value;
  }

  static NotANumber not_a_number(PyObject* key, PyObject* object) {
    return {text_of(key), pybind11::reinterpret_borrow<pybind11::object>(object)};
  }

  // False for what is no number; so are tensors, for which whoever can take them asks first.
  static bool read_number(PyObject* object, double& value) {
    if (PyFloat_CheckExact(object)) {
      value = PyFloat_AS_DOUBLE(object);
      return true;
    }
    const bool is_number = PyFloat_Check(object) || PyLong_Check(object) || is_numpys(object);
    if (!is_number) return false;
    value = PyFloat_AsDouble(object);
    if (value != -1.0 || !PyErr_Occurred()) return true;
    PyErr_Clear();  // an int beyond double
    return false;
  }

 private:
  // NumPy's scalars in which torch's step rounds no more than once to float32. (float64 is a
  // Python float; float16 rounds to 3 digits, and the minus of an unsigned integer wraps around.)
  static bool is_numpys(PyObject* object) {
    const char* const name = Py_TYPE(object)->tp_name;
    if (std::strncmp(name, "numpy.", 6) != 0) return false;
    for (const char* const each : {"float32", "int64", "int32"}) {
      if (std::strcmp(name + 6, each) == 0) return true;
    }
    return false;
  }

  static bool is_true(PyObject* object, PyObject* key) {
    if (object == Py_False || object == Py_None) return false;
    const int truth = PyObject_IsTrue(object);
    if (truth >= 0) return truth != 0;
    PyErr_Clear();
    throw not_a_number(key, object);
  }

  static std::string text_of(PyObject* key) {
    return pybind11::cast<std::string>(pybind11::handle(key));
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

// Whether there is anything under `key` but None.
inline bool has_entry(PyObject* state, PyObject* key) {
  PyObject* value = PyDict_GetItemWithError(state, key);
  if (value == nullptr && PyErr_Occurred()) throw pybind11::error_already_set();
  return value != nullptr && value != Py_None;
}

// The entries of an optimizer's state, found by their parameter's identity. A look-up would hash
// the tensor in Python code: slow, and other threads would come between what has been read and the
// step.
class Entries {
 public:
  // state: one that reads_as_dict.
  explicit Entries(PyObject* state) : state_(state) {}

  // Null for none. Parameters are mostly asked for in the order of their entries, so the search
  // goes on where the last one ended.
  PyObject* of(PyObject* parameter) {
    PyObject *key, *value;
    for (const bool from_start : {false, true}) {
      if (from_start) position_ = 0;
      while (PyDict_Next(state_, &position_, &key, &value)) {
        if (key == parameter) return value;
      }
    }
    return nullptr;
  }

 private:
  PyObject* state_;
  Py_ssize_t position_ = 0;
};

}  // namespace mlp_ext
