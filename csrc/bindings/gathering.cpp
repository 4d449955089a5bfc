#include "gathering.h"

#include <ATen/ops/index_select.h>
#include <c10/util/SmallVector.h>
#include <pybind11/pytypes.h>

#include <cstring>

#include "memory.h"
#include "surroundings.h"

namespace mlp_ext {

namespace {

std::string why_not(PyObject* object) {
  // is_exactly_tensor takes a Parameter too, whose rows are views of it.
  const char* const type = Py_TYPE(object)->tp_name;
  if (!is_tensor(object) || !is_exactly_tensor(object) || std::strcmp(type, "Tensor") != 0) {
    return std::string("is a ") + type;
  }
  const at::Tensor& t = tensor_of(object);
  if (!t.device().is_cpu()) return "is on " + t.device().str();
  if (t.layout() != at::kStrided || t.is_nested()) return "is not dense";
  if (t.dim() == 0) return "has no rows";
  // index_select would resolve all of it for each batch.
  if (t.is_conj() || t.is_neg()) return "is a conjugate or negative view";
  // stack keeps channels_last of the samples.
  if (t.dim() > 4 && !t.is_contiguous()) {
    return "has samples of 4 dimensions or more and is not contiguous";
  }
  if (!has_its_memory(t)) return "has lost its memory (untyped_storage().resize_())";
  return "";
}

}  // namespace

std::string why_not_gathered(PyObject* tensors) {
  if (!PyTuple_Check(tensors) && !PyList_Check(tensors)) {
    return std::string("the dataset's tensors are a ") + Py_TYPE(tensors)->tp_name;
  }
  const Py_ssize_t n = PySequence_Fast_GET_SIZE(tensors);
  if (n == 0) return "the dataset has no tensors";
  for (Py_ssize_t i = 0; i < n; ++i) {
    const std::string reason = why_not(PySequence_Fast_GET_ITEM(tensors, i));
    if (!reason.empty()) return "tensor " + std::to_string(i) + " " + reason;
  }
  return "";
}

pybind11::object gather(PyObject* tensors, const at::Tensor& index) {
  if (!as_usual(kData) || !why_not_gathered(tensors).empty()) return pybind11::none();
  c10::SmallVector<at::Tensor, 4> batch;
  const Py_ssize_t n = PySequence_Fast_GET_SIZE(tensors);
  for (Py_ssize_t i = 0; i < n; ++i)
    batch.push_back(tensor_of(PySequence_Fast_GET_ITEM(tensors, i)));
  {
    const WithoutGil without_gil;
    for (at::Tensor& tensor : batch) tensor = at::index_select(tensor, 0, index);
  }
  pybind11::list result(n);
  for (Py_ssize_t i = 0; i < n; ++i)
    PyList_SET_ITEM(result.ptr(), i, as_python(batch[i]).release().ptr());
  return result;
}

}  // namespace mlp_ext
