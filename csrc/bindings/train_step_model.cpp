#include "train_step_model.h"

#include <cmath>
#include <cstring>

namespace mlp_ext {

namespace py = pybind11;
using at::Tensor;
using step::LayerKind;

namespace {

bool is_true(const py::object& object) {
  const int truth = PyObject_IsTrue(object.ptr());
  if (truth < 0) throw py::error_already_set();
  return truth != 0;
}

py::dict dict_of(const LayerSpec& spec, const char* name) { return spec.module.attr(name); }

std::string of_module(const char* name, const LayerSpec& spec, bool of_dropout = false) {
  const char* const place = of_dropout ? " of the Dropout at or behind '" : " of '";
  return std::string("TrainStep: the ") + name + place + spec.path + "' is ";
}

// The number under `name` of one of the spec's modules.
double number_of(const LayerSpec& spec, const py::object& module, const char* name) {
  const py::object found = module.attr(name);
  double value = 0;
  if (Group::read_number(found.ptr(), value)) return value;
  throw py::type_error(of_module(name, spec, module.is(spec.dropout)) + described(found) +
                       ", no number that the compiled step takes");
}

// LayerNorm's, as torch.nn.functional.layer_norm reads it.
int64_t width_of_layer_norm(const LayerSpec& spec) {
  const py::object shape = spec.module.attr("normalized_shape");
  PyObject* const object = shape.ptr();
  const std::string is = of_module("normalized_shape", spec) + described(shape);
  if (!PyList_Check(object) && !PyTuple_Check(object)) {
    throw py::type_error(is + "; expected a tuple of one int");
  }
  TORCH_CHECK(PySequence_Fast_GET_SIZE(object) == 1, is, "; expected one dimension");
  PyObject* const item = PySequence_Fast_GET_ITEM(object, 0);
  const int64_t width = PyLong_Check(item) ? PyLong_AsLongLong(item) : -1;
  if (!PyLong_Check(item)) throw py::type_error(is + "; expected a tuple of one int");
  if (width == -1 && PyErr_Occurred()) throw py::error_already_set();
  return width;
}

// BatchNorm1d's: that of its tensors. num_features, which torch looks at no more once it is made,
// counts where it has none.
int64_t width_of_batch_norm(const LayerSpec& spec) {
  for (const auto& [dict, name] : {std::pair("_parameters", "weight"),
                                   {"_parameters", "bias"},
                                   {"_buffers", "running_mean"}}) {
    PyObject* const object = PyDict_GetItemString(dict_of(spec, dict).ptr(), name);
    if (object && is_tensor(object) && tensor_of(object).dim() == 1) {
      return tensor_of(object).size(0);
    }
  }
  const py::object features = spec.module.attr("num_features");
  if (!PyLong_Check(features.ptr())) {
    throw py::type_error(of_module("num_features", spec) + described(features) + ", no int");
  }
  return features.cast<int64_t>();
}

}  // namespace

std::string described(const py::handle& value) {
  PyObject* const object = value.ptr();
  const std::string type = Py_TYPE(object)->tp_name;
  if (is_tensor(object)) {
    const Tensor& t = tensor_of(object);
    return c10::str("a ", type, " of ", t.scalar_type(), " and shape ", t.sizes(), " on ",
                    t.device(), t.requires_grad() ? ", which requires a gradient" : "");
  }
  const bool is_short = object == Py_None || PyBool_Check(object) || PyFloat_CheckExact(object) ||
                        PyLong_CheckExact(object) || PyUnicode_CheckExact(object);
  return is_short ? py::repr(value).cast<std::string>() : "a " + type;
}

void refuse_option(const NotANumber& option) {
  const std::string name = "the optimizer's " + option.option;
  if (is_tensor(option.received.ptr())) {
    check_memory(tensor_of(option.received.ptr()), name.c_str());
  }
  throw py::type_error("TrainStep: " + name + " is " + described(option.received) +
                       ", no number that the compiled step takes");
}

template <class T>
PyObject* ModelReading<T>::entry(const LayerSpec& spec, const py::dict& dict, const char* name) {
  PyObject* object = PyDict_GetItemString(dict.ptr(), name);
  if (object == nullptr || object == Py_None) return nullptr;
  TORCH_CHECK(is_tensor(object), "TrainStep: ", name, " of '", spec.path,
              "' is no Tensor any more");
  const Tensor& t = tensor_of(object);
  TORCH_CHECK(t.scalar_type() == type_, "TrainStep got an input of dtype ", type_, ", but the ",
              name, " of '", spec.path, "' is ", t.scalar_type(), "; they must be the same");
  // By its counter of versions, which it lacks also when it has got ordinary data since.
  TORCH_CHECK(
      t.unsafeGetTensorImpl()->version_counter().enabled(), "TrainStep: the ", name, " of '",
      spec.path,
      "' was made under inference_mode, and cannot be trained: make it outside, or clone it");
  TORCH_CHECK(is_plain(t) && t.is_contiguous(), "TrainStep: the ", name, " of '", spec.path,
              "' is ", t.scalar_type(), " of shape ", t.sizes(), " on ", t.device(),
              " with strides ", t.strides(), "; expected a contiguous ", type_, " tensor on cpu");
  tensors.emplace_back(object);
  return object;
}

template <class T>
const T* ModelReading<T>::take_parameter(const LayerSpec& spec, const py::dict& dict,
                                         const char* name, at::IntArrayRef sizes,
                                         bool& wants_grad) {
  PyObject* const object = entry(spec, dict, name);
  if (object == nullptr) return nullptr;
  const Tensor& t = tensor_of(object);
  TORCH_CHECK(t.sizes() == sizes, "TrainStep: the ", name, " of '", spec.path, "' has shape ",
              t.sizes(), "; expected ", sizes);
  parameters.push_back(object);
  if (const char* const hook = hook_on(object, in_group_)) {
    TORCH_CHECK(false, "TrainStep: ", hook, " of the ", name, " of '", spec.path,
                "' is registered, and would not run");
  }
  wants_grad = t.requires_grad();
  grad_sizes.push_back(wants_grad ? t.numel() : 0);
  if (!wants_grad) return data_of<T>(t);
  T* const data = mutable_data_of<T>(t);  // a copy that is yet to be made is made here
  slots.push_back({object, data, layers.size(), std::strcmp(name, "bias") == 0});
  return data;
}

// As torch.nn.functional.dropout: p is looked at in evaluation too.
template <class T>
double ModelReading<T>::probability(const LayerSpec& spec) {
  const py::object& dropout = spec.dropout;
  if (dropout.is_none()) return 0;
  containers.emplace_back(dropout.attr("__dict__"));
  const double p = number_of(spec, dropout, "p");
  const std::string range = c10::str("dropout probability has to be between 0 and 1, but got ", p);
  TORCH_CHECK_VALUE(!(p < 0 || p > 1), range);
  TORCH_CHECK(!std::isnan(p), range);
  const py::object training = dropout.attr("training");
  if (!PyBool_Check(training.ptr())) {
    throw py::type_error(of_module("training", spec, true) + described(training) + ", no bool");
  }
  if (training.ptr() != Py_True) return 0;
  is_random = is_random || p > 0;
  return p;
}

template <class T>
void ModelReading<T>::read_linear(const LayerSpec& spec, step::TrainLayer<T>& layer) {
  const py::dict parameters_of = dict_of(spec, "_parameters");
  containers.emplace_back(parameters_of);
  PyObject* const weight = entry(spec, parameters_of, "weight");
  TORCH_CHECK(weight != nullptr && tensor_of(weight).dim() == 2, "TrainStep: '", spec.path,
              "' has no weight any more");
  const at::IntArrayRef sizes = tensor_of(weight).sizes();
  layer.out = sizes[0], layer.in = sizes[1];
  layer.weight = take_parameter(spec, parameters_of, "weight", sizes, layer.wants_weight_grad);
  layer.bias = take_parameter(spec, parameters_of, "bias", {layer.out}, layer.wants_bias_grad);
}

template <class T>
void ModelReading<T>::read_norm(const LayerSpec& spec, step::TrainLayer<T>& layer) {
  const py::dict parameters_of = dict_of(spec, "_parameters");
  containers.emplace_back(spec.module.attr("__dict__"));
  containers.emplace_back(parameters_of);
  const bool is_batch = layer.kind == LayerKind::kBatchNorm;
  layer.in = layer.out = is_batch ? width_of_batch_norm(spec) : width_of_layer_norm(spec);
  layer.eps = number_of(spec, spec.module, "eps");
  layer.weight =
      take_parameter(spec, parameters_of, "weight", {layer.out}, layer.wants_weight_grad);
  layer.bias = take_parameter(spec, parameters_of, "bias", {layer.out}, layer.wants_bias_grad);
  if (is_batch) read_statistics(spec, layer);
}

// As torch.nn.modules.batchnorm._BatchNorm.forward decides.
template <class T>
void ModelReading<T>::read_statistics(const LayerSpec& spec, step::TrainLayer<T>& layer) {
  const py::dict buffers = dict_of(spec, "_buffers");
  containers.emplace_back(buffers);
  PyObject* const mean = entry(spec, buffers, "running_mean");
  PyObject* const variance = entry(spec, buffers, "running_var");
  for (PyObject* const object : {mean, variance}) {
    TORCH_CHECK(object == nullptr || tensor_of(object).sizes() == at::IntArrayRef(layer.out),
                "TrainStep: '", spec.path, "' has running statistics of shape ",
                tensor_of(object).sizes(), " for ", layer.out, " features");
  }
  TORCH_CHECK((mean == nullptr) == (variance == nullptr), "TrainStep: '", spec.path,
              "' has one of running_mean and running_var, not both");
  T* const mean_data = mean ? mutable_data_of<T>(tensor_of(mean)) : nullptr;
  T* const variance_data = variance ? mutable_data_of<T>(tensor_of(variance)) : nullptr;
  const bool training = is_true(spec.module.attr("training"));
  const bool tracks = is_true(spec.module.attr("track_running_stats"));
  if (!training && mean) {
    layer.fixed_mean = mean_data, layer.fixed_variance = variance_data;
    return;
  }
  batch_norm = spec.path.c_str();
  TORCH_CHECK_VALUE(!(layer.eps <= 0), "batch_norm eps must be positive during training, but got ",
                    layer.eps, " at '", spec.path, "'");
  if (!training || !tracks || !mean) return;
  RunningStatistics<T> moving{};
  moving.layer = layers.size();
  moving.mean = mean, moving.variance = variance;
  moving.mean_data = mean_data, moving.variance_data = variance_data;
  const py::object momentum = spec.module.attr("momentum");
  moving.momentum = momentum.is_none() ? std::nan("") : number_of(spec, spec.module, "momentum");
  PyObject* const count = PyDict_GetItemString(buffers.ptr(), "num_batches_tracked");
  if (count != nullptr && is_tensor(count)) {
    const Tensor& t = tensor_of(count);
    TORCH_CHECK(t.scalar_type() == at::kLong && t.dim() == 0 && t.device().is_cpu(),
                "TrainStep: num_batches_tracked of '", spec.path, "' is no int64 scalar on cpu");
    moving.batches = count;
    moving.batches_data = mutable_data_of<int64_t>(t);
    tensors.emplace_back(count);
  } else {
    TORCH_CHECK(!momentum.is_none(), "TrainStep: '", spec.path,
                "' has momentum None and no num_batches_tracked");
  }
  running.push_back(moving);
}

template <class T>
void ModelReading<T>::read(const LayerSpec& spec) {
  step::TrainLayer<T> layer{};
  layer.kind = spec.kind;
  if (spec.kind == LayerKind::kLinear) {
    read_linear(spec, layer);
  } else if (spec.kind != LayerKind::kMap) {
    read_norm(spec, layer);
  }
  layer.activation = spec.activation;
  layer.dropout = probability(spec);
  layer.dropout_place = dropouts_;
  if (!spec.dropout.is_none()) ++dropouts_;
  if (spec.kind == LayerKind::kMap && layer.activation == Activation::none && layer.dropout == 0) {
    return;  // a Dropout that is off
  }
  add_layer(layer, spec.path);
}

// A layer without parameters is as wide as the one before it, the first as the first that has them.
template <class T>
void ModelReading<T>::fill_in_widths() {
  size_t first = 0;
  while (first < layers.size() && layers[first].kind == LayerKind::kMap) ++first;
  TORCH_CHECK(first < layers.size(), "TrainStep: the model has no layer with parameters");
  int64_t width = layers[first].in;
  for (auto& layer : layers) {
    if (layer.kind == LayerKind::kMap) layer.in = layer.out = width;
    width = layer.out;
  }
}

template class ModelReading<float>;
template class ModelReading<double>;

}  // namespace mlp_ext
