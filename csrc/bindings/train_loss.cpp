#include "train_loss.h"

#include <cmath>

#include "class_targets.h"
#include "eligibility.h"
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

template <class T>
CheckedLoss<T>::CheckedLoss(const LossSpec& spec, const Tensor& target, int64_t rows,
                            int64_t columns)
    : spec_(spec), rows_(rows), columns_(columns) {
  TORCH_CHECK(target.device().is_cpu() && target.layout() == at::kStrided,
              "TrainStep got a target on ", target.device(), "; expected a dense tensor on cpu");
  if (spec.is_cross_entropy()) {
    if (at::isFloatingType(target.scalar_type())) {
      check_probabilities(target);
    } else {
      check_classes(target);
    }
  } else {
    check_elements(target);
  }
}

template <class T>
void CheckedLoss<T>::check_classes(const Tensor& target) {
  TORCH_CHECK_VALUE(target.dim() == 1 && target.size(0) == rows_, "Expected input batch_size (",
                    rows_,
                    ") to match target batch_size: got a "
                    "target of shape ",
                    target.sizes());
  TORCH_CHECK(target.scalar_type() == at::kLong,
              "TrainStep expected class indices of dtype Long, got ", target.scalar_type());
  target_ = target.contiguous();
  check_class_weight();
  const T* weight = weight_.defined() ? weight_.const_data_ptr<T>() : nullptr;
  const double total = total_target_weight(target_, weight, columns_, spec_.ignore_index);
  if (spec_.mean) scale_ = total == 0 ? std::nan("") : 1 / total;
}

template <class T>
void CheckedLoss<T>::check_probabilities(const Tensor& target) {
  const std::array<int64_t, 2> sizes = {rows_, columns_};
  TORCH_CHECK(target.sizes() == at::IntArrayRef(sizes), "TrainStep got a target of shape ",
              target.sizes(), " and dtype ", target.scalar_type(), " for an output of shape ",
              at::IntArrayRef(sizes),
              "; expected probabilities of that shape, or class indices of dtype Long");
  TORCH_CHECK(target.scalar_type() == kType<T>, "TrainStep got a target of dtype ",
              target.scalar_type(), " for an output of dtype ", kType<T>);
  TORCH_CHECK(spec_.ignore_index < 0, "ignore_index is not supported for floating point target");
  target_ = target.contiguous().resolve_neg();
  check_class_weight();
  if (spec_.mean) scale_ = 1.0 / double(rows_);
}

template <class T>
void CheckedLoss<T>::check_class_weight() {
  if (spec_.weight) {
    TORCH_CHECK(spec_.weight->dim() == 1 && spec_.weight->size(0) == columns_ &&
                    spec_.weight->scalar_type() == kType<T>,
                "weight tensor should be defined either for all ", columns_,
                " classes or no classes but got weight tensor of shape: ", spec_.weight->sizes(),
                " and dtype ", spec_.weight->scalar_type());
    weight_ = spec_.weight->contiguous();
  }
}

template <class T>
void CheckedLoss<T>::check_elements(const Tensor& target) {
  const std::array<int64_t, 2> sizes = {rows_, columns_};
  TORCH_CHECK_VALUE(target.sizes() == at::IntArrayRef(sizes), "TrainStep got a target of shape ",
                    target.sizes(), " for an output of shape ", at::IntArrayRef(sizes),
                    "; they must be the same");
  TORCH_CHECK(target.scalar_type() == kType<T>, "TrainStep got a target of dtype ",
              target.scalar_type(), " for an output of dtype ", kType<T>);
  target_ = target.contiguous();
  if (target_.is_neg()) target_ = target_.resolve_neg();
  const auto ready = [&](const Tensor& t, at::IntArrayRef shape) {
    TORCH_CHECK(t.scalar_type() == kType<T>, "TrainStep got a weight of the loss of dtype ",
                t.scalar_type(), " for an output of dtype ", kType<T>);
    return t.expand(shape).contiguous().resolve_neg();
  };
  if (spec_.weight) weight_ = ready(*spec_.weight, sizes);
  if (spec_.pos_weight) pos_weight_ = ready(*spec_.pos_weight, {columns_});
  if (spec_.kind == "bce") {
    const T* t = target_.const_data_ptr<T>();
    for (int64_t i = 0; i < target_.numel(); ++i) {
      TORCH_CHECK(t[i] >= 0 && t[i] <= 1, "all elements of target should be between 0 and 1, got ",
                  t[i]);
    }
  }
  // torch divides these two by the sum of the weights, huber_loss by the number of elements.
  const bool by_weight = weight_.defined() && (spec_.kind == "mse" || spec_.kind == "l1");
  if (spec_.mean) scale_ = 1.0 / (by_weight ? sum_of<T>(weight_) : double(rows_ * columns_));
}

template <class T>
step::TrainLoss<T> CheckedLoss<T>::with(const T* output, T* grad) const {
  step::TrainLoss<T> loss{};
  loss.is_cross_entropy = spec_.is_cross_entropy();
  loss.result_scale = scale_;
  const T* weight = weight_.defined() ? weight_.const_data_ptr<T>() : nullptr;
  if (loss.is_cross_entropy) {
    auto& p = loss.cross_entropy;
    p.classes = columns_;
    p.logits = output, p.ld_logits = columns_;
    if (target_.scalar_type() == at::kLong) {
      p.target = target_.const_data_ptr<int64_t>();
    } else {
      p.probabilities = target_.const_data_ptr<T>(), p.ld_probabilities = columns_;
    }
    p.weight = weight;
    p.weight_sum = weight ? sum_of<T>(weight_) : double(columns_);
    p.ignore_index = spec_.ignore_index;
    p.label_smoothing = spec_.label_smoothing;
    p.scale = scale_;
    p.grad = grad, p.ld_grad = columns_;
    return loss;
  }
  auto& p = loss.elementwise;
  p.kind = kind_named(spec_.kind);
  p.columns = columns_;
  p.input = output, p.ld_input = columns_;
  p.target = target_.const_data_ptr<T>(), p.ld_target = columns_;
  p.weight = weight, p.ld_weight = columns_;
  p.pos_weight = pos_weight_.defined() ? pos_weight_.const_data_ptr<T>() : nullptr;
  p.parameter = spec_.parameter;
  p.scale = scale_;
  p.grad = grad, p.ld_grad = columns_;
  return loss;
}

template class CheckedLoss<float>;
template class CheckedLoss<double>;

}  // namespace mlp_ext
