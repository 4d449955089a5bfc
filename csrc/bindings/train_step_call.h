// What a TrainStep reads at each call: the model's parameters, the optimizer's options and states.
#pragma once

#include <vector>

#include "optimizer_state.h"
#include "stack_tensors.h"
#include "train_step.h"

namespace mlp_ext {

// The model's tensors at this call.
struct Parameter {
  at::Tensor tensor;  // undefined for no bias
  PyObject* object = nullptr;
};

inline Parameter parameter_in(const pybind11::dict& parameters, PyObject* name) {
  PyObject* object = PyDict_GetItemWithError(parameters.ptr(), name);
  if (object == nullptr && PyErr_Occurred()) throw pybind11::error_already_set();
  if (object == nullptr || object == Py_None) return {};
  TORCH_CHECK(THPVariable_Check(object), "TrainStep: a parameter is no Tensor any more");
  return {THPVariable_Unpack(object), object};
}

inline void check_parameter(const Parameter& parameter, at::ScalarType type, size_t layer,
                            const char* name) {
  const auto filled = [](PyObject* hooks) { return hooks && PyObject_IsTrue(hooks) == 1; };
  const auto* object = reinterpret_cast<const THPVariable*>(parameter.object);
  TORCH_CHECK(!filled(object->backward_hooks) && !filled(object->post_accumulate_grad_hooks),
              "TrainStep: a hook is registered on the ", name, " of Linear number ", layer,
              ", and would not run");
  const at::Tensor& t = parameter.tensor;
  TORCH_CHECK(t.scalar_type() == type && is_plain(t) && t.is_contiguous(), "TrainStep: the ", name,
              " of Linear number ", layer, " is ", t.scalar_type(), " of shape ", t.sizes(), " on ",
              t.device(), " with strides ", t.strides(), "; expected a contiguous ", type,
              " tensor on cpu, as at construction");
}

// What one parameter's update changes besides the parameter.
struct Changed : ParameterState {
  PyObject* object;
  at::Tensor param;
  size_t layer;
  bool is_bias;
};

template <class T>
struct Call {
  std::vector<step::TrainLayer<T>> layers;
  std::vector<step::Update<T>> updates;
  std::vector<Changed> changed;
  std::vector<at::Tensor> alive;  // the parameters: another thread may replace them meanwhile
  bool random = false;
};

inline pybind11::object attribute(const pybind11::object& object, PyObject* name) {
  pybind11::object value =
      pybind11::reinterpret_steal<pybind11::object>(PyObject_GetAttr(object.ptr(), name));
  if (!value) throw pybind11::error_already_set();
  return value;
}

inline bool is_training(const pybind11::object& module) {
  static PyObject* const kTraining = interned("training");
  return PyObject_IsTrue(attribute(module, kTraining).ptr()) == 1;
}

inline double probability_of(const pybind11::object& module) {
  static PyObject* const kP = interned("p");
  return Group::as_double(attribute(module, kP).ptr());
}

// Reads the layers; and for each parameter, in `slots`, where its gradient will be.
template <class T>
void read_layers(const std::vector<LayerSpec>& specs, at::ScalarType type, Call<T>& call,
                 std::vector<Changed>& slots) {
  static PyObject* const kWeight = interned("weight");
  static PyObject* const kBias = interned("bias");
  for (size_t l = 0; l < specs.size(); ++l) {
    const Parameter weight = parameter_in(specs[l].parameters, kWeight);
    const Parameter bias = parameter_in(specs[l].parameters, kBias);
    TORCH_CHECK(weight.tensor.defined() && weight.tensor.dim() == 2, "TrainStep: Linear number ", l,
                " has no weight any more");
    check_parameter(weight, type, l, "weight");
    step::TrainLayer<T> layer{};
    layer.out = weight.tensor.size(0), layer.in = weight.tensor.size(1);
    layer.weight = data_of<T>(weight.tensor);
    layer.activation = specs[l].activation;
    layer.wants_weight_grad = weight.tensor.requires_grad();
    TORCH_CHECK(l == 0 || call.layers.back().out == layer.in, "TrainStep: Linear number ", l,
                " takes ", layer.in, " features, but the one before gives ",
                l == 0 ? 0 : call.layers.back().out);
    if (layer.wants_weight_grad) {
      slots.push_back({{}, weight.object, weight.tensor, l, false});
    }
    if (bias.tensor.defined()) {
      check_parameter(bias, type, l, "bias");
      TORCH_CHECK(bias.tensor.dim() == 1 && bias.tensor.size(0) == layer.out,
                  "TrainStep: the bias of Linear number ", l, " has shape ", bias.tensor.sizes());
      layer.bias = data_of<T>(bias.tensor);
      layer.wants_bias_grad = bias.tensor.requires_grad();
      if (layer.wants_bias_grad) {
        slots.push_back({{}, bias.object, bias.tensor, l, true});
      }
    }
    if (!specs[l].dropout.is_none() && is_training(specs[l].dropout)) {
      layer.dropout = probability_of(specs[l].dropout);
      TORCH_CHECK_VALUE(layer.dropout >= 0 && layer.dropout <= 1,
                        "dropout probability has to be between 0 and 1, but got ", layer.dropout);
      call.random = call.random || layer.dropout > 0;
    }
    call.layers.push_back(layer);
    call.alive.push_back(weight.tensor);
    call.alive.push_back(bias.tensor);
  }
}

// Fills in options and states of one parameter; false if its state is not complete yet.
template <class T>
bool read_update(GroupOptions& options, PyObject* own, step::Update<T>& update, Changed& changed) {
  const Found found = read_state(options, own, changed.param, changed);
  TORCH_CHECK(found != Found::kUnsuited,
              "TrainStep: the optimizer's state of a parameter is of "
              "another type, lies in memory otherwise than the parameter, or its step is no scalar "
              "tensor on cpu");
  for (int i = 0; i < kMostStates; ++i) {
    if (changed.states[i].defined()) update.states[i] = mutable_data_of<T>(changed.states[i]);
  }
  update.args = changed.args;
  return found == Found::kAll;
}

}  // namespace mlp_ext
