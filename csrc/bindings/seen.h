// What was read from Python, and whether it still stands there: so that a call which finds nothing
// new need not read it again.
//
// All of it is held by its Python objects, and traverse() shows those to the garbage collector. An
// at::Tensor kept here would be a reference that the collector cannot see, and one that
// torch.utils.swap_tensors refuses to work beside.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "python.h"

namespace mlp_ext {

// Another number after every change of the dict; 0 where Python keeps none.
inline uint64_t version_of_dict([[maybe_unused]] PyObject* dict) {
#if PY_VERSION_HEX < 0x030C0000
  return reinterpret_cast<PyDictObject*>(dict)->ma_version_tag;
#else
  return 0;
#endif
}

// A dict or list, and the objects that it held. They are kept alive, so an object at the same
// address is the same object.
class SeenContainer {
 public:
  explicit SeenContainer(pybind11::handle container)
      : container_(pybind11::reinterpret_borrow<pybind11::object>(container)) {
    each([this](PyObject* object) {
      objects_.push_back(pybind11::reinterpret_borrow<pybind11::object>(object));
      return true;
    });
  }

  bool unchanged() const {
    const uint64_t version = PyDict_Check(container_.ptr()) ? version_of_dict(container_.ptr()) : 0;
    if (version != 0 && version == version_) return true;
    size_t place = 0;
    const bool same = each([&](PyObject* object) {
      return place < objects_.size() && objects_[place++].ptr() == object;
    });
    if (!same || place != objects_.size()) return false;
    version_ = version;
    return true;
  }

  // As unchanged(), where floats and tuples of floats may have been replaced by such: those are
  // what it is about from now on. (After kOther it is of no more use.)
  enum class Change { kNone, kFloats, kOther };
  Change look_again() {
    const uint64_t version = PyDict_Check(container_.ptr()) ? version_of_dict(container_.ptr()) : 0;
    if (version != 0 && version == version_) return Change::kNone;
    Change change = Change::kNone;
    size_t place = 0;
    const bool alike = each([&](PyObject* object) {
      if (place == objects_.size()) return false;
      pybind11::object& before = objects_[place++];
      if (object == before.ptr()) return true;
      if (!are_floats_alike(object, before.ptr())) return false;
      before = pybind11::reinterpret_borrow<pybind11::object>(object);
      change = Change::kFloats;
      return true;
    });
    if (!alike || place != objects_.size()) return Change::kOther;
    version_ = version;
    return change;
  }

  PyObject* container() const { return container_.ptr(); }

  int traverse(visitproc visit, void* arg) const {
    Py_VISIT(container_.ptr());
    for (const pybind11::object& object : objects_) Py_VISIT(object.ptr());
    return 0;
  }

 private:
  static bool are_floats_alike(PyObject* a, PyObject* b) {
    if (PyFloat_CheckExact(a)) return PyFloat_CheckExact(b);
    if (!PyTuple_CheckExact(a) || !PyTuple_CheckExact(b)) return false;
    const Py_ssize_t n = PyTuple_GET_SIZE(a);
    bool alike = n == PyTuple_GET_SIZE(b);
    for (Py_ssize_t i = 0; alike && i < n; ++i) {
      alike =
          PyFloat_CheckExact(PyTuple_GET_ITEM(a, i)) && PyFloat_CheckExact(PyTuple_GET_ITEM(b, i));
    }
    return alike;
  }

  // Calls see(object) for all keys and values, or items, until one gives false.
  template <class See>
  bool each(const See& see) const {
    PyObject* const container = container_.ptr();
    if (PyDict_Check(container)) {
      PyObject *key, *value;
      Py_ssize_t position = 0;
      while (PyDict_Next(container, &position, &key, &value)) {
        if (!see(key) || !see(value)) return false;
      }
      return true;
    }
    const Py_ssize_t n = PySequence_Fast_GET_SIZE(container);  // a list or tuple
    for (Py_ssize_t i = 0; i < n; ++i) {
      if (!see(PySequence_Fast_GET_ITEM(container, i))) return false;
    }
    return true;
  }

  pybind11::object container_;
  std::vector<pybind11::object> objects_;
  mutable uint64_t version_ = 0;  // of a dict that held them
};

// One entry of a dict, or that there is none.
class SeenEntry {
 public:
  SeenEntry(pybind11::dict dict, pybind11::str key)
      : dict_(std::move(dict)),
        key_(std::move(key)),
        value_(pybind11::reinterpret_borrow<pybind11::object>(found())) {}

  bool unchanged() const { return found() == value_.ptr(); }
  int traverse(visitproc visit, void* arg) const {
    Py_VISIT(dict_.ptr());
    Py_VISIT(value_.ptr());
    return 0;
  }

 private:
  PyObject* found() const { return PyDict_GetItemWithError(dict_.ptr(), key_.ptr()); }

  pybind11::dict dict_;
  pybind11::str key_;
  pybind11::object value_;  // null for none
};

// A Tensor object, and where and how it lay in memory: `p.data = ...`, set_(), resize_() and
// swap_tensors change that without making another object. The storage is kept: `p.data = ...` in
// another thread must not free what the kernels are writing to.
class SeenTensor {
 public:
  // object: a Tensor.
  explicit SeenTensor(PyObject* object)
      : object_(pybind11::reinterpret_borrow<pybind11::object>(object)),
        storage_(tensor().storage()),
        data_(storage_.data()),
        bytes_(storage_.nbytes()),
        offset_(tensor().storage_offset()),
        type_(tensor().scalar_type()),
        requires_grad_(tensor().requires_grad()),
        sizes_(tensor().sizes()),
        strides_(tensor().strides()) {}

  bool unchanged() const {
    const at::Tensor& now = tensor();
    const c10::TensorImpl& t = *now.unsafeGetTensorImpl();
    return t.unsafe_storage().unsafeGetStorageImpl() == storage_.unsafeGetStorageImpl() &&
           storage_.data() == data_ && storage_.nbytes() == bytes_ &&
           t.storage_offset() == offset_ && now.scalar_type() == type_ &&
           t.requires_grad() == requires_grad_ && same(t.sizes(), sizes_) &&
           same(t.strides(), strides_);
  }

  int traverse(visitproc visit, void* arg) const {
    Py_VISIT(object_.ptr());
    return 0;
  }

 private:
  using Shape = c10::SmallVector<int64_t, 2>;

  const at::Tensor& tensor() const { return tensor_of(object_.ptr()); }
  // std::equal calls memcmp, for one or two numbers.
  static bool same(at::IntArrayRef a, const Shape& b) {
    bool equal = a.size() == b.size();
    for (size_t i = 0; equal && i < b.size(); ++i) equal = a[i] == b[i];
    return equal;
  }

  pybind11::object object_;
  c10::Storage storage_;
  const void* data_;
  size_t bytes_;
  int64_t offset_;
  at::ScalarType type_;
  bool requires_grad_;
  Shape sizes_, strides_;
};

// Shows all that a list of these holds to the collector.
template <class List>
int traverse_all(const List& list, visitproc visit, void* arg) {
  for (const auto& seen : list) {
    if (const int stop = seen.traverse(visit, arg)) return stop;
  }
  return 0;
}

// Some of both.
class Watch {
 public:
  // tensors: Tensor objects.
  Watch(const std::vector<pybind11::dict>& containers, const std::vector<pybind11::object>& tensors)
      : containers_(containers.begin(), containers.end()) {
    for (const pybind11::object& tensor : tensors) {
      if (!is_tensor(tensor.ptr())) throw pybind11::type_error("a Watch is of dicts and tensors");
      tensors_.emplace_back(tensor.ptr());
    }
  }

  bool unchanged() const {
    for (const SeenContainer& seen : containers_) {
      if (!seen.unchanged()) return false;
    }
    for (const SeenTensor& seen : tensors_) {
      if (!seen.unchanged()) return false;
    }
    return true;
  }

  int traverse(visitproc visit, void* arg) const {
    if (const int stop = traverse_all(containers_, visit, arg)) return stop;
    return traverse_all(tensors_, visit, arg);
  }
  // For the collector: lets go of everything.
  void clear() {
    std::exchange(containers_, {});
    std::exchange(tensors_, {});
  }

 private:
  std::vector<SeenContainer> containers_;
  std::vector<SeenTensor> tensors_;
};

}  // namespace mlp_ext
