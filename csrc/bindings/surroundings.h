// What other code may have put in the way of what we stand in for: a patched function or class of
// torch, a hook for all modules, a mode, a trace. Everything needs the GIL.
//
// _surroundings.py, mlp_ext.nn and _gathering.py register what is watched, at import. What is
// expected is what stands there then, if it is torch's own; if it is not, it counts as patched
// until torch's own is put back.
#pragma once

#include <cstdint>
#include <string>

#include "python.h"

namespace mlp_ext {

// Which operators of torch are stood in for; a caller may join several.
enum Part : unsigned {
  kLayers = 1,  // Linear, activations, Dropout, normalizations, and their containers
  kLosses = 2,
  kData = 4,  // DataLoader, its iterator and what that runs in one process
};

// True if nothing is in the way: torch would run its own code too, and nobody would watch it. To be
// asked at each call, as modes belong to a thread and a patch may come at any time. It runs no
// Python code. torch.set_default_device and `with torch.device(...)` are modes that touch nothing
// but the functions that make tensors, and count as none.
bool as_usual(unsigned parts);

// What is in the way, for a message ("torch.nn.functional.linear is patched (by pkg.fn)"); empty if
// nothing is.
std::string what_is_unusual(unsigned parts);

// Watch the attribute `name` of `owner`, a module or a class, for `part`: a function that `home`, a
// module, defines, or a built-in function of that name.
void watch(unsigned part, PyObject* owner, const std::string& name, PyObject* home);
// Watch the attribute `name` of `module`: a dictionary that is to stay, and to stay empty.
void watch_hooks(PyObject* module, const std::string& name);
// Count `type`, a class of TorchFunctionMode, as harmless.
void allow_mode(PyObject* type);

// A method of an object as it was found: set on the object itself, or of its class.
class SeenMethod {
 public:
  SeenMethod(pybind11::object object, const char* name);
  // Runs no Python code.
  bool unchanged() const;
  int traverse(visitproc visit, void* arg) const;

 private:
  PyObject* on_object() const;  // borrowed; null for none
  pybind11::object on_class() const;

  pybind11::object object_, dict_, name_;
  pybind11::object own_, of_class_;  // own_: null for none
  mutable uint64_t version_ = 0;     // of the class, in which of_class_ was found
};

}  // namespace mlp_ext
