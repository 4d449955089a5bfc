#include "surroundings.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/TracerMode.h>
#include <c10/core/SafePyObject.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <algorithm>
#include <vector>

#include "seen.h"

namespace mlp_ext {

namespace {

namespace py = pybind11;
using at::impl::PythonTorchFunctionTLS;
using c10::impl::TorchDispatchModeTLS;

// ---- A number for each state of a dictionary and of a class: another after every change. 0 is no
// number: whatever was known must be looked up again.

#if PY_VERSION_HEX < 0x030C0000
uint64_t version_of_module(PyObject* dict) { return version_of_dict(dict); }

void number(PyObject*) {}
#else  // 3.12 has watchers in its place, and one number does for all dictionaries
uint64_t changes = 1;

int count_change(PyDict_WatchEvent, PyObject*, PyObject*, PyObject*) {
  ++changes;
  return 0;
}

int watcher() {  // negative if other libraries have all that Python has
  static const int id = PyDict_AddWatcher(&count_change);
  return id;
}

uint64_t version_of_module(PyObject*) { return watcher() < 0 ? 0 : changes; }

void number(PyObject* dict) {
  if (watcher() < 0 || PyDict_Watch(watcher(), dict) != 0) PyErr_Clear();
}
#endif

// Python takes the number away when an attribute of the class, or of one that it derives from, is
// set, and gives another at the next look-up, if any is left.
uint64_t version_of_class(PyTypeObject* type) {
#if PY_VERSION_HEX < 0x030B0000  // in later ones the number alone says it
  if (!PyType_HasFeature(type, Py_TPFLAGS_VALID_VERSION_TAG)) return 0;
#endif
  return type->tp_version_tag;
}

// ---- What is watched. All references are owned and never given back: the pointers are compared as
// long as the process lives, so no other object may get the address of one.

struct Expected {
  PyObject* name;
  PyObject* globals;          // of the module that defines it
  PyObject* value = nullptr;  // null until one of torch's own was seen

  // No file names: a frozen application has none.
  bool is_own(PyObject* found) const {
    if (PyFunction_Check(found)) return PyFunction_GetGlobals(found) == globals;
    if (!PyCFunction_Check(found)) return PyDict_Check(found);
    const char* const its_name = reinterpret_cast<PyCFunctionObject*>(found)->m_ml->ml_name;
    return PyUnicode_CompareWithASCIIString(name, its_name) == 0;
  }

  bool matches(PyObject* found) {
    if (value) return found == value;
    if (!found || !is_own(found)) return false;
    value = Py_NewRef(found);
    return true;
  }
};

struct Owner {
  unsigned part;
  PyObject* object;
  PyObject* dict;  // of a module; null for a class
  std::vector<Expected> attributes;
  uint64_t version = 0;  // in which all attributes were the expected ones

  uint64_t present_version() const {
    return dict ? version_of_module(dict)
                : version_of_class(reinterpret_cast<PyTypeObject*>(object));
  }

  py::object found(const Expected& attribute) const {
    py::object value = py::reinterpret_steal<py::object>(PyObject_GetAttr(object, attribute.name));
    if (!value) PyErr_Clear();
    return value;
  }

  bool is_expected() {
    if (version != 0 && present_version() == version) return true;
    for (Expected& attribute : attributes) {
      if (!attribute.matches(found(attribute).ptr())) return false;
    }
    version = present_version();
    return true;
  }
};

struct Watched {
  std::vector<Owner> owners;
  std::vector<PyObject*> hooks;
  std::vector<PyTypeObject*> harmless_modes;
};

Watched& watched() {
  static auto* const all = new Watched;
  return *all;
}

bool is_any_hooked(unsigned parts) {
  if (!(parts & (kLayers | kLosses))) return false;  // there is no module in the others
  const auto& hooks = watched().hooks;
  return std::any_of(hooks.begin(), hooks.end(),
                     [](PyObject* dict) { return PyDict_GET_SIZE(dict) != 0; });
}

template <class SafePyObject>
PyTypeObject* type_of(const SafePyObject& mode) {
  return Py_TYPE(mode.ptr(&mode.pyinterpreter()));
}

// The innermost mode that is active and not harmless, or null.
const PyTypeObject* function_mode() {
  if (!at::impl::torch_function_mode_enabled()) return nullptr;
  const auto& harmless = watched().harmless_modes;
  for (int64_t i = PythonTorchFunctionTLS::stack_len(); i-- > 0;) {
    PyTypeObject* const type = type_of(*PythonTorchFunctionTLS::get_stack_at(i));
    if (std::find(harmless.begin(), harmless.end(), type) == harmless.end()) return type;
  }
  return nullptr;
}

// ---- Messages

std::string text_of(PyObject* object, const char* name) {
  const py::object value = py::reinterpret_steal<py::object>(PyObject_GetAttrString(object, name));
  const char* const text =
      value && PyUnicode_Check(value.ptr()) ? PyUnicode_AsUTF8(value.ptr()) : nullptr;
  if (!text) PyErr_Clear();
  return text ? text : "";
}

// Where users find it: torch.nn.modules.activation.ReLU is torch.nn.ReLU to them.
std::string public_name_of(const Owner& owner) {
  const std::string name = text_of(owner.object, "__name__");
  if (owner.dict) return name;
  const std::string module = text_of(owner.object, "__module__");
  return (module.rfind("torch.nn.modules.", 0) == 0 ? "torch.nn" : module) + "." + name;
}

std::string is_patched(std::string what, PyObject* found) {
  if (!found) return what + " is missing";
  const std::string module = text_of(found, "__module__"), name = text_of(found, "__qualname__");
  what += " is patched (by ";
  if (name.empty()) return what + "a " + Py_TYPE(found)->tp_name + ")";
  return what + (module.empty() ? "" : module + ".") + name + ")";
}

}  // namespace

bool as_usual(unsigned parts) {
  if (function_mode() || TorchDispatchModeTLS::any_modes_set() ||
      at::tracer::impl::is_dispatch_enabled() || is_any_hooked(parts)) {
    return false;
  }
  auto& owners = watched().owners;
  return std::all_of(owners.begin(), owners.end(), [parts](Owner& owner) {
    return !(owner.part & parts) || owner.is_expected();
  });
}

std::string what_is_unusual(unsigned parts) {
  if (const PyTypeObject* mode = function_mode()) {
    return std::string("a TorchFunctionMode is active (") + mode->tp_name + ")";
  }
  if (TorchDispatchModeTLS::any_modes_set()) {
    const int64_t innermost = TorchDispatchModeTLS::stack_len() - 1;
    const auto mode = TorchDispatchModeTLS::get_stack_at(innermost);
    return std::string("a TorchDispatchMode is active (") + type_of(*mode)->tp_name + ")";
  }
  if (at::tracer::impl::is_dispatch_enabled()) return "torch.jit.trace is recording";
  if (is_any_hooked(parts)) return "a hook for all modules is registered (torch.nn.modules.module)";
  for (Owner& owner : watched().owners) {
    if (!(owner.part & parts) || owner.is_expected()) continue;
    for (Expected& attribute : owner.attributes) {
      const py::object found = owner.found(attribute);
      if (attribute.matches(found.ptr())) continue;
      return is_patched(public_name_of(owner) + "." + PyUnicode_AsUTF8(attribute.name),
                        found.ptr());
    }
  }
  return "";
}

void watch(unsigned part, PyObject* owner, const std::string& name, PyObject* home) {
  auto& owners = watched().owners;
  if (owners.empty() || owners.back().object != owner || owners.back().part != part) {
    PyObject* const dict = PyModule_Check(owner) ? PyModule_GetDict(owner) : nullptr;
    owners.push_back({part, Py_NewRef(owner), Py_XNewRef(dict), {}});
    if (dict) number(dict);
  }
  PyObject* const interned = PyUnicode_InternFromString(name.c_str());
  Owner& last = owners.back();
  last.attributes.push_back({interned, Py_NewRef(PyModule_GetDict(home))});
  last.version = 0;
  last.attributes.back().matches(last.found(last.attributes.back()).ptr());
}

void watch_hooks(PyObject* module, const std::string& name) {
  watch(kLayers | kLosses, module, name, module);
  if (PyObject* const hooks = watched().owners.back().attributes.back().value) {
    watched().hooks.push_back(hooks);
  }
}

void allow_mode(PyObject* type) {
  watched().harmless_modes.push_back(reinterpret_cast<PyTypeObject*>(Py_NewRef(type)));
}

SeenMethod::SeenMethod(py::object object, const char* name)
    : object_(std::move(object)),
      dict_(object_.attr("__dict__")),
      name_(py::reinterpret_steal<py::object>(PyUnicode_InternFromString(name))),
      own_(py::reinterpret_borrow<py::object>(on_object())),
      of_class_(on_class()) {}

PyObject* SeenMethod::on_object() const {
  PyObject* const found = PyDict_GetItemWithError(dict_.ptr(), name_.ptr());
  if (!found) PyErr_Clear();
  return found;
}

py::object SeenMethod::on_class() const {
  PyTypeObject* const type = Py_TYPE(object_.ptr());
  py::object found = py::reinterpret_steal<py::object>(
      PyObject_GetAttr(reinterpret_cast<PyObject*>(type), name_.ptr()));
  if (!found) PyErr_Clear();
  version_ = version_of_class(type);
  return found;
}

bool SeenMethod::unchanged() const {
  if (on_object() != own_.ptr()) return false;
  if (version_ != 0 && version_of_class(Py_TYPE(object_.ptr())) == version_) return true;
  return on_class().ptr() == of_class_.ptr();
}

int SeenMethod::traverse(visitproc visit, void* arg) const {
  for (const auto* held : {&object_, &dict_, &own_, &of_class_}) Py_VISIT(held->ptr());
  return 0;
}

}  // namespace mlp_ext
