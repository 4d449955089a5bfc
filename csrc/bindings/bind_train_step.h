// TrainStep's classes as Python has them. A part of module.cpp, the one file that sees all of
// pybind11.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <string>

#include "gathering.h"
#include "seen.h"
#include "train_step.h"

namespace mlp_ext {

namespace py = pybind11;

inline step::LayerKind layer_kind(const std::string& name) {
  if (name == "linear") return step::LayerKind::kLinear;
  if (name == "batch_norm") return step::LayerKind::kBatchNorm;
  if (name == "layer_norm") return step::LayerKind::kLayerNorm;
  TORCH_CHECK_VALUE(name == "map", "mlp_ext: unknown kind of layer '", name, "'");
  return step::LayerKind::kMap;
}

// The C++ object in an instance of a pybind11 class with one base and the usual holder. cast()
// looks the type up in a table first.
template <class T>
T* instance_of(PyObject* self) {
  return static_cast<T*>(reinterpret_cast<py::detail::instance*>(self)->simple_value_holder[0]);
}

inline PyObject* call_core(PyObject* self, PyObject* const* args, Py_ssize_t n) {
  HANDLE_TH_ERRORS
  try {
    if (n != 3 || !is_tensor(args[0]) || !is_tensor(args[1])) {
      const auto name = [&](Py_ssize_t i) { return i < n ? Py_TYPE(args[i])->tp_name : "nothing"; };
      throw py::type_error(std::string("TrainStep takes two tensors, the features and the targets, "
                                       "got ") +
                           name(0) + " and " + name(1));
    }
    for (Py_ssize_t i = 0; i < 2; ++i) {
      TORCH_CHECK(is_exactly_tensor(args[i]), "TrainStep got a ", Py_TYPE(args[i])->tp_name,
                  ", no ordinary tensor: a subclass of Tensor would see none of PyTorch's "
                  "functions; use the loop, or as_subclass(torch.Tensor)");
    }
    return instance_of<TrainStepCore>(self)->call(tensor_of(args[0]), tensor_of(args[1]),
                                                  args[2] == Py_True);
  } catch (const py::builtin_exception& error) {
    error.set_error();
    return nullptr;
  }
  END_HANDLE_TH_ERRORS
}

inline PyMethodDef kCall = {"train_step",
                            reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call_core)),
                            METH_FASTCALL, "(x, y, keep_grad) -> the loss, or a StepOutcome"};

// core(x, y, keep_grad) as a built-in function, which Python calls in a tenth of the time that it
// takes to call a method of a pybind11 class. It keeps the core alive.
inline py::object fast_call(const py::object& core) {
  static_cast<void>(core.cast<TrainStepCore*>());  // throws for anything else
  PyObject* const function = PyCFunction_New(&kCall, core.ptr());
  if (function == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(function);
}

// For a class whose T holds Python objects: Python's collector sees them, so that a cycle through
// one is found, and breaks it.
template <class T>
py::custom_type_setup collected() {
  return py::custom_type_setup([](PyHeapTypeObject* heap_type) {
    PyTypeObject& type = heap_type->ht_type;
    type.tp_flags |= Py_TPFLAGS_HAVE_GC;
    type.tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
      Py_VISIT(Py_TYPE(self));
      const T* const object = instance_of<T>(self);  // null before the constructor has run
      return object ? object->traverse(visit, arg) : 0;
    };
    type.tp_clear = [](PyObject* self) {
      if (T* const object = instance_of<T>(self)) object->clear();
      return 0;
    };
  });
}

inline void bind_train_step(py::module_& m) {
  py::class_<LossSpec>(m, "LossSpec")
      .def(py::init<>())
      .def_readwrite("kind", &LossSpec::kind)
      .def_readwrite("mean", &LossSpec::mean)
      .def_readwrite("weight", &LossSpec::weight)
      .def_readwrite("pos_weight", &LossSpec::pos_weight)
      .def_readwrite("on_host", &LossSpec::on_host)
      .def_readwrite("ignore_index", &LossSpec::ignore_index)
      .def_readwrite("label_smoothing", &LossSpec::label_smoothing)
      .def_readwrite("parameter", &LossSpec::parameter);
  py::class_<LayerSpec>(m, "LayerSpec")
      .def(py::init([](const std::string& kind, std::string path, py::object module,
                       int64_t activation, py::object dropout) {
        return LayerSpec{layer_kind(kind), std::move(path), std::move(module),
                         checked_activation(activation), std::move(dropout)};
      }));
  py::class_<StepLock, std::shared_ptr<StepLock>>(m, "StepLock").def(py::init<>());
  py::class_<StepGroup, std::shared_ptr<StepGroup>>(m, "StepGroup")
      .def(py::init<py::object, int, std::vector<int64_t>, bool>())
      .def_property_readonly("meetings", &StepGroup::meetings)
      .def_property_readonly("is_apart", &StepGroup::is_apart)
      .def("end", &StepGroup::end)
      .def("leave", &StepGroup::leave);
  py::class_<TrainStepCore>(m, "TrainStepCore", collected<TrainStepCore>())
      .def(py::init<std::vector<LayerSpec>, LossSpec, py::object, const std::string&, double, bool,
                    const std::string&, std::vector<py::dict>, const std::vector<py::object>&,
                    const std::vector<std::pair<py::dict, py::str>>&, std::vector<py::object>,
                    std::shared_ptr<StepLock>, std::shared_ptr<StepGroup>>())
      .def("takes_epoch", &TrainStepCore::takes_epoch)
      .def("refuse_incomplete", &TrainStepCore::refuse_incomplete)
      .def("epoch", &TrainStepCore::epoch);
  m.def("fast_call", &fast_call);
  // What hook_on says of the first tensor that it says something of.
  m.def("hook_on", [](const std::vector<py::object>& tensors, bool in_group) {
    const char* found = nullptr;
    for (size_t i = 0; i < tensors.size() && !found; ++i) {
      found = hook_on(tensors[i].ptr(), in_group);
    }
    return found;
  });
  py::class_<Watch>(m, "Watch", collected<Watch>())
      .def(py::init<const std::vector<py::dict>&, const std::vector<py::object>&>())
      .def("unchanged", &Watch::unchanged);
}

}  // namespace mlp_ext
