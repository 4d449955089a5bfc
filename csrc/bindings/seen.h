// What was read from Python, and whether it still stands there: so that a call which finds nothing
// new need not read it again.
#pragma once

#include <vector>

#include "python.h"

namespace mlp_ext {

// A dict or list, and the objects that it held. They are kept alive, so an object at the same
// address is the same object.
class SeenContainer {
 public:
  explicit SeenContainer(pybind11::handle container)
      : container_(pybind11::reinterpret_borrow<pybind11::object>(container)) {
    visit([this](PyObject* object) {
      objects_.push_back(pybind11::reinterpret_borrow<pybind11::object>(object));
      return true;
    });
  }

  bool unchanged() const {
    size_t place = 0;
    const bool same = visit([&](PyObject* object) {
      return place < objects_.size() && objects_[place++].ptr() == object;
    });
    return same && place == objects_.size();
  }

 private:
  // Calls see(object) for all keys and values, or items, until one gives false.
  template <class See>
  bool visit(const See& see) const {
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
};

// A tensor, and where and how it lay in memory: `p.data = ...`, set_() and resize_() change that
// without making another object. The storage is kept too: `p.data = ...` in another thread must not
// free what the kernels are writing to.
class SeenTensor {
 public:
  explicit SeenTensor(const at::Tensor& tensor)
      : tensor_(tensor),
        storage_(tensor.storage()),
        data_(storage_.data()),
        offset_(impl().storage_offset()),
        type_(tensor.scalar_type()),
        requires_grad_(tensor.requires_grad()),
        sizes_(tensor.sizes()),
        strides_(tensor.strides()) {}

  bool unchanged() const {
    const c10::TensorImpl& t = impl();
    return t.unsafe_storage().unsafeGetStorageImpl() == storage_.unsafeGetStorageImpl() &&
           storage_.data() == data_ && t.storage_offset() == offset_ &&
           tensor_.scalar_type() == type_ && t.requires_grad() == requires_grad_ &&
           same(t.sizes(), sizes_) && same(t.strides(), strides_);
  }

 private:
  using Shape = c10::SmallVector<int64_t, 2>;

  const c10::TensorImpl& impl() const { return *tensor_.unsafeGetTensorImpl(); }
  // std::equal calls memcmp, for one or two numbers.
  static bool same(at::IntArrayRef a, const Shape& b) {
    bool equal = a.size() == b.size();
    for (size_t i = 0; equal && i < b.size(); ++i) equal = a[i] == b[i];
    return equal;
  }

  at::Tensor tensor_;
  c10::Storage storage_;
  const void* data_;
  int64_t offset_;
  at::ScalarType type_;
  bool requires_grad_;
  Shape sizes_, strides_;
};

// Some of both.
class Watch {
 public:
  Watch(const std::vector<pybind11::dict>& containers, const std::vector<at::Tensor>& tensors)
      : containers_(containers.begin(), containers.end()),
        tensors_(tensors.begin(), tensors.end()) {}

  bool unchanged() const {
    for (const SeenContainer& seen : containers_) {
      if (!seen.unchanged()) return false;
    }
    for (const SeenTensor& seen : tensors_) {
      if (!seen.unchanged()) return false;
    }
    return true;
  }

 private:
  std::vector<SeenContainer> containers_;
  std::vector<SeenTensor> tensors_;
};

}  // namespace mlp_ext
