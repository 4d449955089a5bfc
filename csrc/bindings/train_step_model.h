// The model of a TrainStep: its modules, and what they hold at a call.
#pragma once

#include <vector>

#include "../step/train_step.h"
#include "optimizer_state.h"
#include "seen.h"
#include "stack_tensors.h"

namespace mlp_ext {

// One module of the chain with the activation and the nn.Dropout (or None) behind it.
struct LayerSpec {
  step::LayerKind kind;
  std::string path;
  pybind11::object module;  // nn.Linear, nn.BatchNorm1d, nn.LayerNorm; None for kMap
  Activation activation = Activation::none;
  pybind11::object dropout;
};

// What messages say of an option's value: its type, and what a number, string or tensor is.
std::string described(const pybind11::handle& value);

// Throws TypeError that names the optimizer's option, or RuntimeError for a tensor whose memory has
// been freed.
[[noreturn]] void refuse_option(const NotANumber& option);

// A parameter with a gradient, and where in the plan's chain that is. Its object, and those below,
// are kept alive by the containers that they were read from.
struct Slot {
  PyObject* object;
  void* data;  // its memory, as the layer has it
  size_t layer;
  bool is_bias;

  const at::Tensor& param() const { return tensor_of(object); }
};

// A batch norm whose running statistics a step moves on. The memory is as it was read: a step
// writes to it without the GIL, when others may give the tensors other memory.
template <class T>
struct RunningStatistics {
  size_t layer;
  PyObject *mean, *variance, *batches;  // batches: int64 scalar, null if there is none
  T *mean_data, *variance_data;
  int64_t* batches_data;  // null if there is none
  double momentum;        // NaN: the mean over all batches
};

inline pybind11::object attribute(const pybind11::handle& object, PyObject* name) {
  PyObject* value = PyObject_GetAttr(object.ptr(), name);
  if (value == nullptr) throw pybind11::error_already_set();
  return pybind11::reinterpret_steal<pybind11::object>(value);
}

// What the modules hold, read once and good until something in `containers` or `tensors` changes.
// Reading runs no Python code where options are plain numbers, so no other thread and no signal
// handler comes in between. Each pointer is taken beside its SeenTensor, once.
template <class T>
class ModelReading {
 public:
  // in_group: of processes that average their gradients.
  ModelReading(const std::vector<LayerSpec>& specs, at::ScalarType type, bool in_group)
      : type_(type), in_group_(in_group) {
    for (const LayerSpec& spec : specs) read(spec);
    fill_in_widths();
    for (size_t l = 1; l < layers.size(); ++l) {
      TORCH_CHECK(layers[l - 1].out == layers[l].in, "TrainStep: '", paths_[l], "' takes ",
                  layers[l].in, " features, but what comes before gives ", layers[l - 1].out);
    }
    TORCH_CHECK(!slots.empty(), "TrainStep: no parameter of the model requires a gradient");
  }

  std::vector<step::TrainLayer<T>> layers;
  std::vector<Slot> slots;
  std::vector<RunningStatistics<T>> running;
  bool is_random = false;            // a Dropout draws
  const char* batch_norm = nullptr;  // path of one that needs more than one row
  std::vector<SeenContainer> containers;
  std::vector<SeenTensor> tensors;
  std::vector<PyObject*> parameters;  // kept alive by their containers
  std::vector<int64_t> grad_sizes;    // of the parameters' gradients, 0: none

  int traverse(visitproc visit, void* arg) const {
    if (const int stop = traverse_all(containers, visit, arg)) return stop;
    return traverse_all(tensors, visit, arg);
  }

 private:
  void read(const LayerSpec& spec);
  void fill_in_widths();
  void read_linear(const LayerSpec& spec, step::TrainLayer<T>& layer);
  void read_norm(const LayerSpec& spec, step::TrainLayer<T>& layer);
  void read_statistics(const LayerSpec& spec, step::TrainLayer<T>& layer);
  // An entry of _parameters or _buffers, seen; null for None.
  PyObject* entry(const LayerSpec& spec, const pybind11::dict& dict, const char* name);
  const T* take_parameter(const LayerSpec& spec, const pybind11::dict& dict, const char* name,
                          at::IntArrayRef sizes, bool& wants_grad);
  double probability(const LayerSpec& spec);
  void add_layer(const step::TrainLayer<T>& layer, const std::string& path) {
    layers.push_back(layer);
    paths_.push_back(path);
  }

  at::ScalarType type_;
  bool in_group_;
  std::vector<std::string> paths_;
  int dropouts_ = 0;  // that were read
};

}  // namespace mlp_ext
