#include "train_loss.h"

#include <ATen/ExpandUtils.h>

#include <cmath>

#include "class_targets.h"
#include "optimizer_state.h"
#include "stack_tensors.h"

namespace mlp_ext {

using at::Tensor;

namespace {

LossKind kind_named(const std::string& name) {
  for (size_t code = 0; code < std::size(kLossNames); ++code) {
    if (name == kLossNames[code]) return static_cast<LossKind>(code);
  }
  TORCH_CHECK_VALUE(false, "mlp_ext: unknown loss '", name, "'");
}

}  // namespace

LossOptions::LossOptions(const LossSpec& spec)
    : kind(spec.kind),
      mean(spec.mean),
      is_cross_entropy(spec.is_cross_entropy()),
      ignore_index(spec.ignore_index),
      label_smoothing(spec.label_smoothing),
      parameter(spec.parameter) {
  if (!spec.weight.is_none()) weight = readable(tensor_of(spec.weight.ptr())).detach();
  if (!spec.pos_weight.is_none()) pos_weight = readable(tensor_of(spec.pos_weight.ptr())).detach();
}

bool has_compiled_form(const LossOptions& options, const Tensor& target, at::ScalarType type,
                       int64_t rows, int64_t columns) {
  const std::array<int64_t, 2> shape = {rows, columns};
  const at::IntArrayRef sizes(shape);
  const bool is_plain_target = target.device().is_cpu() && target.layout() == at::kStrided;
  if (!is_plain_target) return false;
  const auto is_of_columns = [&](const Tensor& t) { return t.dim() == 1 && t.size(0) == columns; };
  if (options.weight.defined() && !is_plain(options.weight)) return false;
  if (options.weight.defined() && options.weight.scalar_type() != type) return false;
  if (options.is_cross_entropy) {
    if (options.weight.defined() && !is_of_columns(options.weight)) return false;
    const auto dtype = target.scalar_type();
    // PyTorch does not take bytes with label smoothing.
    const bool bytes = dtype == at::kByte && options.label_smoothing == 0;
    if (dtype == at::kLong || bytes) return target.dim() == 1 && target.size(0) == rows;
    return dtype == type && target.sizes() == sizes && options.ignore_index < 0;
  }
  if (target.scalar_type() != type || target.sizes() != sizes) return false;
  if (options.weight.defined()) {
    const bool is_bce = options.kind == "bce" || options.kind == "bce_with_logits";
    const bool fits = is_bce ? at::is_expandable_to(options.weight.sizes(), sizes)
                             : options.weight.sizes() == sizes;
    if (!fits) return false;
  }
  const Tensor& by_column = options.pos_weight;
  return !by_column.defined() ||
         (is_plain(by_column) && by_column.scalar_type() == type &&
          ((by_column.numel() == 1 && by_column.dim() <= 2) || is_of_columns(by_column)));
}

template <class T>
CheckedLoss<T>::CheckedLoss(const LossOptions& options, const Tensor& target, int64_t rows,
                            int64_t columns)
    : options_(options), rows_(rows), columns_(columns) {
  if (!options.is_cross_entropy) {
    take_elements(target);
  } else if (at::isFloatingType(target.scalar_type())) {
    take_probabilities(target);
  } else {
    take_classes(target);
  }
}

template <class T>
void CheckedLoss<T>::take_probabilities(const Tensor& target) {
  if (options_.weight.defined()) weight_ = options_.weight.contiguous();
  target_ = target.contiguous().resolve_neg();
  if (options_.mean) scale_ = 1.0 / double(rows_);
}

template <class T>
void CheckedLoss<T>::take_classes(const Tensor& target) {
  if (options_.weight.defined()) weight_ = options_.weight.contiguous();
  target_ = target.to(at::kLong).contiguous();
  const T* weight = data_of<T>(weight_);
  const double total = total_target_weight(target_, weight, columns_, options_.ignore_index);
  if (options_.mean) scale_ = total == 0 ? std::nan("") : 1 / total;
}

template <class T>
void CheckedLoss<T>::take_elements(const Tensor& target) {
  const std::array<int64_t, 2> sizes = {rows_, columns_};
  target_ = target.contiguous();
  if (target_.is_neg()) target_ = target_.resolve_neg();
  const auto ready = [](const Tensor& t, at::IntArrayRef shape) {
    return t.reshape(t.numel() == 1 ? at::IntArrayRef() : t.sizes()).expand(shape).contiguous();
  };
  if (options_.weight.defined()) weight_ = ready(options_.weight, sizes);
  if (options_.pos_weight.defined()) pos_weight_ = ready(options_.pos_weight, {columns_});
  if (options_.kind == "bce") {
    const T* t = data_of<T>(target_);
    for (int64_t i = 0; i < target_.numel(); ++i) {
      TORCH_CHECK(t[i] >= 0 && t[i] <= 1, "all elements of target should be between 0 and 1, got ",
                  t[i]);
    }
  }
  // torch divides these two by the sum of the weights, huber_loss by the number of elements.
  const bool by_weight = weight_.defined() && (options_.kind == "mse" || options_.kind == "l1");
  if (options_.mean) scale_ = 1.0 / (by_weight ? sum_of<T>(weight_) : double(rows_ * columns_));
}

template <class T>
step::TrainLoss<T> CheckedLoss<T>::with(const T* output, T* grad) const {
  step::TrainLoss<T> loss{};
  loss.is_cross_entropy = options_.is_cross_entropy;
  loss.result_scale = scale_;
  const T* weight = data_of<T>(weight_);
  if (loss.is_cross_entropy) {
    auto& p = loss.cross_entropy;
    p.classes = columns_;
    p.logits = output, p.ld_logits = columns_;
    if (target_.scalar_type() == at::kLong) {
      p.target = data_of<int64_t>(target_);
    } else {
      p.probabilities = data_of<T>(target_), p.ld_probabilities = columns_;
    }
    p.weight = weight;
    p.weight_sum = weight ? sum_of<T>(weight_) : double(columns_);
    p.ignore_index = options_.ignore_index;
    p.label_smoothing = options_.label_smoothing;
    p.scale = scale_;
    p.grad = grad, p.ld_grad = columns_;
    return loss;
  }
  auto& p = loss.elementwise;
  p.kind = kind_named(options_.kind);
  p.columns = columns_;
  p.input = output, p.ld_input = columns_;
  p.target = data_of<T>(target_), p.ld_target = columns_;
  p.weight = weight, p.ld_weight = columns_;
  p.pos_weight = data_of<T>(pos_weight_);
  p.parameter = options_.parameter;
  p.scale = scale_;
  p.grad = grad, p.ld_grad = columns_;
  return loss;
}

template class CheckedLoss<float>;
template class CheckedLoss<double>;

}  // namespace mlp_ext
