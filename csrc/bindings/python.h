// Python's objects, and the tensors among them.
//
// Not pybind11.h, nor torch's python_variable.h, which includes it: the vtable of pybind11's
// exception is made in every file that sees the whole of it, and half of pybind11 with that: 4 of
// the 6 seconds that such a file took. It is module.cpp's alone.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/cast.h>
#include <pybind11/detail/class.h>
#include <torch/version.h>

#include <vector>

namespace mlp_ext {

// pybind11's guards of the GIL reach into its internals, which are the other half.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  ~WithoutGil() { PyEval_RestoreThread(state_); }
  WithoutGil(const WithoutGil&) = delete;

 private:
  PyThreadState* state_;
};

class WithGil {
 public:
  WithGil() : state_(PyGILState_Ensure()) {}
  ~WithGil() { PyGILState_Release(state_); }
  WithGil(const WithGil&) = delete;

 private:
  PyGILState_STATE state_;
};

bool is_tensor(PyObject* object);
// A Tensor or Parameter, of no other subclass.
bool is_exactly_tensor(PyObject* object);
// Of an object that is_tensor() knows. A step asks sixty times; as a call it took 2 ns.
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 13
// torch keeps it right behind the object's head, as module.cpp asserts.
inline const at::Tensor& tensor_of(PyObject* object) {
  return *reinterpret_cast<const at::Tensor*>(object + 1);
}
#else
const at::Tensor& tensor_of(PyObject* object);
#endif
pybind11::object as_python(const at::Tensor& tensor);

// What on a parameter's gradient a backward pass would call, in words: a hook of the tensor, before
// or after its gradient is accumulated, or of its AccumulateGrad node. Null for nothing. in_group:
// hooks in C++ of that node are DistributedDataParallel's, whose work is done in another way.
const char* hook_on(PyObject* tensor, bool in_group);
// Whether there is one on any of these.
bool any_hooked(const std::vector<PyObject*>& tensors, bool in_group);

// True inside an autocast region of the CPU.
bool in_autocast();

}  // namespace mlp_ext
