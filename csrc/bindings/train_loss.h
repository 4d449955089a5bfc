// The loss of a TrainStep: what was asked for at construction, and one call's targets made ready
// for the kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "../step/train_step.h"
#include "python.h"

namespace mlp_ext {

struct LossSpec {
  std::string kind;  // "cross_entropy", or a name of common/loss_kind.h
  bool mean = true;  // otherwise the sum
  pybind11::object weight = pybind11::none(), pos_weight = pybind11::none();  // Tensors or None
  int64_t ignore_index = -100;
  double label_smoothing = 0, parameter = 0;
  // (output, target) -> (loss, gradient of the output), by PyTorch's own loss: for targets that
  // have no compiled form.
  pybind11::object on_host = pybind11::none();

  bool is_cross_entropy() const { return kind == "cross_entropy"; }
  int traverse(visitproc visit, void* arg) const {
    for (const auto* object : {&weight, &pos_weight, &on_host}) Py_VISIT(object->ptr());
    return 0;
  }
};

// The same without Python, as it is at a call: its weights keep the memory which they have then,
// whatever others give these tensors while the GIL is released.
struct LossOptions {
  // spec: for as long as these options.
  explicit LossOptions(const LossSpec& spec);

  const std::string& kind;
  bool mean, is_cross_entropy;
  at::Tensor weight, pos_weight;  // undefined for none
  int64_t ignore_index;
  double label_smoothing, parameter;
};

// Whether the kernels take this target, and these weights, for an output of (rows, columns) of a
// type. What they do not take (another dtype, a shape that broadcasts, or fits nothing) is left to
// PyTorch's loss.
bool has_compiled_form(const LossOptions& options, const at::Tensor& target, at::ScalarType type,
                       int64_t rows, int64_t columns);

// `target` and the weights, of a compiled form, as tensors that the kernels' pointers go into. For
// cross_entropy a floating-point target holds probabilities, any other class indices. Throws what
// torch's loss throws for a class index or a probability out of range.
template <class T>
class CheckedLoss {
 public:
  CheckedLoss(const LossOptions& options, const at::Tensor& target, int64_t rows, int64_t columns);

  step::TrainLoss<T> with(const T* output, T* grad) const;

 private:
  void take_probabilities(const at::Tensor& target);
  void take_classes(const at::Tensor& target);
  void take_elements(const at::Tensor& target);

  const LossOptions& options_;
  int64_t rows_, columns_;
  at::Tensor target_, weight_, pos_weight_;
  double scale_ = 1;
};

}  // namespace mlp_ext
