// mlp_ext._C: the eager entry points. They go straight to the dispatcher, which a call through
// torch.ops reaches only after parsing its arguments against the schema in Python. Tensors with a
// dispatch of their own are given PyTorch's operators here: autograd would do so too, but in
// inference mode the dispatcher passes it by.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/python_hook.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <typeinfo>

#include "../cpu/dispatch.h"
#if defined(MLP_EXT_WITH_CUDA)
#include "../cuda/cublaslt/lt_api.h"
#endif
#include "composite.h"
#include "ops.h"
#include "optimizers.h"
#include "recycling.h"
#include "seen.h"
#include "surroundings.h"
#include "tensor_classes.h"
#include "train_step.h"

namespace py = pybind11;
using at::Tensor;

namespace mlp_ext {

// ---- python.h and tensor_classes.h, which need torch's own headers of Python

bool is_tensor(PyObject* object) { return THPVariable_Check(object); }
bool is_exactly_tensor(PyObject* object) { return THPVariable_CheckExact(object); }
const at::Tensor& tensor_of(PyObject* object) { return THPVariable_Unpack(object); }

py::object as_python(const at::Tensor& tensor) {
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(tensor));
}

const char* hook_on(PyObject* tensor, bool in_group) {
  // A dictionary of hooks is null or empty without any.
  const auto filled = [](PyObject* hooks) { return hooks && PyObject_IsTrue(hooks) == 1; };
  const auto* variable = reinterpret_cast<const THPVariable*>(tensor);
  if (filled(variable->backward_hooks)) return "a hook on the gradient";
  if (filled(variable->post_accumulate_grad_hooks)) return "a post_accumulate_grad hook";
  const auto* meta = torch::autograd::impl::get_autograd_meta(tensor_of(tensor));
  // Nearly always gone with the graph that it was made for.
  if (meta == nullptr || meta->grad_accumulator_.expired()) return nullptr;
  const auto node = meta->grad_accumulator_.lock();
  if (!node) return nullptr;
  // A hook of Python's stays when its handle is removed, around an empty dictionary. (The classes
  // have no symbols to be compared by.)
  const auto counts = [&](const auto& hook, auto* python, const char* name) {
    if (std::strstr(typeid(*hook).name(), name) == nullptr) return !in_group;
    using PythonHook = std::remove_pointer_t<decltype(python)>;
    return filled(static_cast<const PythonHook*>(hook.get())->dict);
  };
  using torch::autograd::PyFunctionPostHook;
  using torch::autograd::PyFunctionPreHook;
  const auto before = [&](const auto& hook) {
    return counts(hook, static_cast<PyFunctionPreHook*>(nullptr), "PyFunctionPreHook");
  };
  const auto after = [&](const auto& hook) {
    return counts(hook, static_cast<PyFunctionPostHook*>(nullptr), "PyFunctionPostHook");
  };
  const bool any = std::any_of(node->pre_hooks().begin(), node->pre_hooks().end(), before) ||
                   std::any_of(node->post_hooks().begin(), node->post_hooks().end(), after);
  return any ? "a hook on the AccumulateGrad node" : nullptr;
}

bool is_foreign_class(const at::Tensor& t) {
  const WithGil gil;
  const py::object tensor = as_python(t);
  const auto is_a = [&tensor](const char* module, const char* name) {
    return py::isinstance(tensor, py::module_::import(module).attr(name));
  };
  return !is_a("torch._subclasses.fake_tensor", "FakeTensor") &&
         !is_a("torch._subclasses.functional_tensor", "FunctionalTensor");
}

// ---- the module

namespace {

Tensor linear(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
              int64_t activation) {
  const WithoutGil without_gil;
  OptionalTensors biases;
  biases.push_back(bias);
  if (any_has_own_dispatch(input, weight, bias)) {
    return mlp_composite(input, weight, biases, activation);
  }
  return ops::mlp(input, weight, biases, activation);
}

Tensor mlp(const Tensor& input, const std::vector<Tensor>& weights,
           const std::vector<std::optional<Tensor>>& biases,
           const std::vector<int64_t>& activations) {
  const WithoutGil without_gil;
  OptionalTensors list;
  list.reserve(biases.size());
  for (const auto& bias : biases) list.push_back(bias);
  if (any_has_own_dispatch(input, weights, biases)) {
    return mlp_composite(input, weights, list, activations);
  }
  return ops::mlp(input, weights, list, activations);
}

Tensor cross_entropy(const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight,
                     int64_t reduction, int64_t ignore_index, double label_smoothing) {
  const WithoutGil without_gil;
  if (any_has_own_dispatch(input, target, weight)) {
    return cross_entropy_composite(input, target, weight, reduction, ignore_index, label_smoothing);
  }
  return ops::cross_entropy(input, target, weight, reduction, ignore_index, label_smoothing);
}

step::LayerKind layer_kind(const std::string& name) {
  if (name == "linear") return step::LayerKind::kLinear;
  if (name == "batch_norm") return step::LayerKind::kBatchNorm;
  if (name == "layer_norm") return step::LayerKind::kLayerNorm;
  TORCH_CHECK_VALUE(name == "map", "mlp_ext: unknown kind of layer '", name, "'");
  return step::LayerKind::kMap;
}

Tensor elementwise_loss(const Tensor& input, const Tensor& target,
                        const std::optional<Tensor>& weight,
                        const std::optional<Tensor>& pos_weight, int64_t kind, int64_t reduction,
                        double parameter) {
  const WithoutGil without_gil;
  if (any_has_own_dispatch(input, target, weight, pos_weight)) {
    return elementwise_loss_composite(input, target, weight, pos_weight, kind, reduction,
                                      parameter);
  }
  return ops::elementwise_loss(input, target, weight, pos_weight, kind, reduction, parameter);
}

// The C++ object in an instance of a pybind11 class with one base and the usual holder. cast()
// looks the type up in a table first.
template <class T>
T* instance_of(PyObject* self) {
  return static_cast<T*>(reinterpret_cast<py::detail::instance*>(self)->simple_value_holder[0]);
}

PyObject* call_core(PyObject* self, PyObject* const* args, Py_ssize_t n) {
  HANDLE_TH_ERRORS
  try {
    if (n != 3 || !is_tensor(args[0]) || !is_tensor(args[1])) {
      const auto name = [&](Py_ssize_t i) { return i < n ? Py_TYPE(args[i])->tp_name : "nothing"; };
      throw py::type_error(std::string("TrainStep takes two tensors, the features and the targets, "
                                       "got ") +
                           name(0) + " and " + name(1));
    }
    return instance_of<TrainStepCore>(self)->call(tensor_of(args[0]), tensor_of(args[1]),
                                                  args[2] == Py_True);
  } catch (const py::builtin_exception& error) {
    error.set_error();
    return nullptr;
  }
  END_HANDLE_TH_ERRORS
}

PyMethodDef kCall = {"train_step",
                     reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call_core)),
                     METH_FASTCALL, "(x, y, keep_grad) -> the loss, or a StepOutcome"};

// core(x, y, keep_grad) as a built-in function, which Python calls in a tenth of the time that it
// takes to call a method of a pybind11 class. It keeps the core alive.
py::object fast_call(const py::object& core) {
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

void bind_train_step(py::module_& m) {
  py::enum_<InputForm>(m, "InputForm")
      .value("MATRIX", InputForm::kMatrix)
      .value("FLATTENED", InputForm::kFlattened)
      .value("ANY_ROWS", InputForm::kAnyRows);
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
      .def(py::init([](const std::string& kind, std::string path, py::object module, int activation,
                       py::object dropout) {
        return LayerSpec{layer_kind(kind), std::move(path), std::move(module),
                         static_cast<Activation>(activation), std::move(dropout)};
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
                    InputForm, std::vector<py::dict>, const std::vector<py::dict>&,
                    std::vector<py::dict>, std::shared_ptr<StepLock>, std::shared_ptr<StepGroup>>())
      .def("takes_epoch", &TrainStepCore::takes_epoch)
      .def("epoch", &TrainStepCore::epoch);
  m.def("fast_call", &fast_call);
  py::class_<Watch>(m, "Watch", collected<Watch>())
      .def(py::init<const std::vector<py::dict>&, const std::vector<py::object>&>())
      .def("unchanged", &Watch::unchanged);
}

PyObject* call_as_usual(PyObject*, PyObject* const* args, Py_ssize_t n) {
  const unsigned long parts = n == 0 ? kLayers | kLosses : PyLong_AsUnsignedLongMask(args[0]);
  if (PyErr_Occurred()) return nullptr;
  for (Py_ssize_t i = 1; i < n; ++i) {
    if (args[i] != Py_None && !is_exactly_tensor(args[i])) Py_RETURN_FALSE;
  }
  return PyBool_FromLong(as_usual(static_cast<unsigned>(parts)));
}

PyMethodDef kAsUsual = {
    "as_usual", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call_as_usual)),
    METH_FASTCALL,
    "(parts=all, *tensors) -> whether nothing is in the way of these parts, and "
    "each of the tensors is one, of no class that may want to see torch's "
    "functions, or None"};

void bind_surroundings(py::module_& m) {
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

std::string compiler() {
#if defined(__clang__)
  return std::string("clang ") + __clang_version__;
#else
  return std::string("gcc ") + __VERSION__;
#endif
}

// Of the library that torch has loaded, as it numbers itself; None where there is none to call.
std::optional<size_t> cublaslt_version() {
#if defined(MLP_EXT_WITH_CUDA)
  if (const cuda::LtFunctions* functions = cuda::lt_functions()) return functions->GetVersion();
#endif
  return std::nullopt;
}

py::dict build_info() {
  py::dict info;
  info["torch_version"] = TORCH_VERSION;
  info["compiler"] = compiler();
  info["cxx_standard"] = std::to_string(__cplusplus);
  return info;
}

}  // namespace

}  // namespace mlp_ext

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  try {
    mlp_ext::cpu::initialize_dispatch();
  } catch (const std::invalid_argument& error) {
    throw py::import_error(error.what());
  }
  m.doc() = "The compiled half of mlp_ext; use the Python package.";
  m.def("linear", &mlp_ext::linear, py::arg("input"), py::arg("weight"), py::arg("bias"),
        py::arg("activation"));
  m.def("mlp", &mlp_ext::mlp, py::arg("input"), py::arg("weights"), py::arg("biases"),
        py::arg("activations"));
  m.def("cross_entropy", &mlp_ext::cross_entropy, py::arg("input"), py::arg("target"),
        py::arg("weight"), py::arg("reduction"), py::arg("ignore_index"),
        py::arg("label_smoothing"));
  m.def("elementwise_loss", &mlp_ext::elementwise_loss, py::arg("input"), py::arg("target"),
        py::arg("weight"), py::arg("pos_weight"), py::arg("kind"), py::arg("reduction"),
        py::arg("parameter"));
  for (const mlp_ext::UpdateRule& rule : mlp_ext::kRules) {
    m.def((std::string(rule.name) + "_step").c_str(),
          [&rule](const py::object& groups, const py::object& state, const py::object& grad_scale,
                  const py::object& found_inf) {
            return mlp_ext::optimizer_step(rule, groups, state, grad_scale, found_inf);
          },
          py::arg("groups"), py::arg("state"), py::arg("grad_scale") = py::none(),
          py::arg("found_inf") = py::none());
  }
  m.def("refuse_freed", &mlp_ext::refuse_freed, py::arg("tensors"));
  m.def("clear_grads", &mlp_ext::clear_grads, py::arg("groups"));
  m.def("clip_grad_norm", &mlp_ext::clip_grad_norm, py::arg("parameters"), py::arg("max_norm"),
        py::arg("error_if_nonfinite"));

  m.def("release_memory", &mlp_ext::release_recycled);
  mlp_ext::bind_surroundings(m);
  mlp_ext::bind_train_step(m);
  m.def("cpu_compiled_isas", &mlp_ext::cpu::compiled_isas);
  m.def("cpu_supported_isas", &mlp_ext::cpu::supported_isas);
  m.def("cpu_active_isa", [] { return mlp_ext::cpu::kernels().name; });
  m.def("cpu_set_isa", &mlp_ext::cpu::set_isa, py::arg("name"));
  m.def("build_info", &mlp_ext::build_info);
  m.def("cublaslt_version", &mlp_ext::cublaslt_version);
  py::list names, saves_input;
  for (int code = 0; code < mlp_ext::kActivationCount; ++code) {
    names.append(mlp_ext::kActivationNames[code]);
    saves_input.append(mlp_ext::saves_input(static_cast<mlp_ext::Activation>(code)));
  }
  py::list losses;
  for (const char* name : mlp_ext::kLossNames) losses.append(name);
  m.attr("LOSSES") = losses;
  py::list devices;
  devices.append("cpu");
#if defined(MLP_EXT_WITH_CUDA)
  devices.append("cuda");
#endif
  m.attr("DEVICES") = devices;
  m.attr("ACTIVATIONS") = names;
  m.attr("ACTIVATION_SAVES_INPUT") = saves_input;
}
