// The loss of a TrainStep: what was asked for at construction, and one call's targets made ready
// for the kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "../step/train_step.h"

namespace mlp_ext {

struct LossSpec {
  std::string kind;  // "cross_entropy", or a name of common/loss_kind.h
  bool mean = true;  // otherwise the sum
  std::optional<at::Tensor> weight, pos_weight;
  int64_t ignore_index = -100;
  double label_smoothing = 0, parameter = 0;

  bool is_cross_entropy() const { return kind == "cross_entropy"; }
  // With weights that keep the memory which they have now, whatever others give these tensors while
  // the GIL is released. It is held here.
  LossSpec kept() const {
    LossSpec spec = *this;
    for (auto* t : {&spec.weight, &spec.pos_weight}) {
      if (*t) *t = (*t)->detach();
    }
    return spec;
  }
};

// `target` and the weights as tensors that the kernels' pointers go into; checked against an output
// of (rows, columns) of type T. For cross_entropy a floating-point target holds probabilities, any
// other class indices. Throws what torch's loss throws for a shape, dtype or class index that does
// not fit.
template <class T>
class CheckedLoss {
 public:
  CheckedLoss(const LossSpec& spec, const at::Tensor& target, int64_t rows, int64_t columns);

  step::TrainLoss<T> with(const T* output, T* grad) const;

 private:
  void check_classes(const at::Tensor& target);
  void check_probabilities(const at::Tensor& target);
  void check_class_weight();
  void check_elements(const at::Tensor& target);

  const LossSpec& spec_;
  int64_t rows_, columns_;
  at::Tensor target_, weight_, pos_weight_;
  double scale_ = 1;
};

}  // namespace mlp_ext
