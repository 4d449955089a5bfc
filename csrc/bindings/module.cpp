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
#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <typeinfo>

#include "../cpu/dispatch.h"
#include "../cuda/gemm/gemm_force.h"
#if defined(MLP_EXT_WITH_CUDA)
#include "../cuda/cublaslt/lt_api.h"
#endif
#include "bind_data.h"
#include "bind_surroundings.h"
#include "bind_train_step.h"
#include "composite.h"
#include "ops.h"
#include "optimizers.h"
#include "recycling.h"
#include "surroundings.h"
#include "tensor_classes.h"

namespace py = pybind11;
using at::Tensor;

namespace mlp_ext {

// ---- python.h and tensor_classes.h, which need torch's own headers of Python

bool is_tensor(PyObject* object) { return THPVariable_Check(object); }
bool is_exactly_tensor(PyObject* object) { return THPVariable_CheckExact(object); }
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 13
static_assert(std::is_same_v<decltype(THPVariable::cdata), at::Tensor> &&
              offsetof(THPVariable, cdata) == sizeof(PyObject));
#else
const at::Tensor& tensor_of(PyObject* object) { return THPVariable_Unpack(object); }
#endif

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
  if (meta == nullptr) return nullptr;
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

bool any_hooked(const std::vector<PyObject*>& tensors, bool in_group) {
  return std::any_of(tensors.begin(), tensors.end(), [in_group](PyObject* tensor) {
    const auto* variable = reinterpret_cast<const THPVariable*>(tensor);
    const auto* meta = static_cast<const torch::autograd::AutogradMeta*>(
        tensor_of(tensor).unsafeGetTensorImpl()->autograd_meta());
    // The node is nearly always gone with the graph that it was made for.
    const bool none = !variable->backward_hooks && !variable->post_accumulate_grad_hooks &&
                      (meta == nullptr || meta->grad_accumulator_.expired());
    return !none && hook_on(tensor, in_group) != nullptr;
  });
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
#if defined(MLP_EXT_WITH_CUDA)
    mlp_ext::cuda::force_products_of_environment();
#endif
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
  mlp_ext::bind_data(m);
  mlp_ext::bind_train_step(m);
  m.def("cpu_compiled_isas", &mlp_ext::cpu::compiled_isas);
  m.def("cpu_supported_isas", &mlp_ext::cpu::supported_isas);
  m.def("cpu_active_isa", [] { return mlp_ext::cpu::kernels().name; });
  m.def("cpu_block_sizes", [] {
    const mlp_ext::cpu::Blocks& blocks = mlp_ext::cpu::kernels().f32.blocks;
    return std::tuple(blocks.kc, blocks.mc, blocks.nc);
  });
  m.def("cpu_set_isa", &mlp_ext::cpu::set_isa, py::arg("name"));
  m.def("build_info", &mlp_ext::build_info);
  m.def("cublaslt_version", &mlp_ext::cublaslt_version);
  m.def("force_products", &mlp_ext::cuda::force_products, py::arg("text"));  // no effect without
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
