// Softmax cross-entropy on the CPU: checks of the targets, then the kernel. The gradient is worked
// out with the loss, in one pass over the logits.
#include <ATen/core/Reduction.h>
#include <ATen/ops/empty.h>

#include <cmath>

#include "class_targets.h"
#include "composite.h"
#include "cpu_kernels.h"
#include "eligibility.h"
#include "implementations.h"
#include "recycling.h"

namespace mlp_ext {

using at::Tensor;

namespace {

struct Options {
  std::optional<Tensor> weight;
  int64_t reduction, ignore_index;
  double label_smoothing;
};

// `grad` undefined: the loss alone.
template <class T>
Tensor run(const Tensor& logits, const Tensor& target, const Options& options, const Tensor& grad) {
  const int64_t rows = logits.size(0), classes = logits.size(1);
  const Tensor weight = options.weight ? options.weight->contiguous() : Tensor();
  cpu::CrossEntropyArgs<T> p{};
  p.classes = classes;
  p.logits = logits.const_data_ptr<T>(), p.ld_logits = logits.stride(0);
  p.target = target.const_data_ptr<int64_t>();
  if (weight.defined()) p.weight = weight.const_data_ptr<T>();
  p.weight_sum = weight.defined() ? sum_of<T>(weight) : double(classes);
  p.ignore_index = options.ignore_index;
  p.label_smoothing = options.label_smoothing;
  const double total = total_target_weight(target, p.weight, classes, options.ignore_index);
  TORCH_CHECK_VALUE(
      options.reduction >= at::Reduction::None && options.reduction <= at::Reduction::Sum,
      "reduction ", options.reduction, " is not 0 (none), 1 (mean) or 2 (sum)");
  // A mean over nothing, or over targets of weight 0, is NaN, as in PyTorch.
  const double mean_scale = total == 0 ? std::nan("") : 1 / total;
  p.scale = options.reduction == at::Reduction::Mean ? mean_scale : 1;
  if (grad.defined()) p.grad = grad.mutable_data_ptr<T>(), p.ld_grad = grad.stride(0);
  Tensor loss = at::empty(
      options.reduction == at::Reduction::None ? at::IntArrayRef({rows}) : at::IntArrayRef(),
      logits.options());
  if (options.reduction == at::Reduction::None) p.row_loss = loss.mutable_data_ptr<T>();
  const double sum = run_cross_entropy(p, rows);
  if (options.reduction == at::Reduction::Mean) {
    *loss.mutable_data_ptr<T>() = T(sum * mean_scale);
  } else if (options.reduction == at::Reduction::Sum) {
    *loss.mutable_data_ptr<T>() = T(sum);
  }
  return loss;
}

std::tuple<Tensor, Tensor> compute(const Tensor& input, const Tensor& target,
                                   const Options& options, bool wants_grad) {
  const auto storage = input.scalar_type();
  const auto compute_type = storage == at::kDouble ? at::kDouble : at::kFloat;
  Tensor logits = input.dim() == 1 ? input.unsqueeze(0) : input;
  if (logits.stride(1) != 1) logits = logits.contiguous();
  logits = logits.to(compute_type);
  Options converted = options;
  if (options.weight) converted.weight = options.weight->to(compute_type);
  const Tensor classes = target.contiguous();
  Tensor grad = wants_grad ? empty_recycled(logits.sizes(), compute_type) : Tensor();
  Tensor loss = compute_type == at::kDouble ? run<double>(logits, classes, converted, grad)
                                            : run<float>(logits, classes, converted, grad);
  if (input.dim() == 1 && options.reduction == at::Reduction::None) loss = loss.squeeze(0);
  if (wants_grad) grad = grad.to(storage).view(input.sizes());
  return {loss.to(storage), grad};
}

}  // namespace

Tensor cross_entropy_cpu(const Tensor& input, const Tensor& target,
                         const std::optional<Tensor>& weight, int64_t reduction,
                         int64_t ignore_index, double label_smoothing) {
  if (!cross_entropy_has_kernel(input, target, weight, label_smoothing)) {
    return cross_entropy_composite(input, target, weight, reduction, ignore_index, label_smoothing);
  }
  const Options options{weight, reduction, ignore_index, label_smoothing};
  return std::get<0>(compute(input, target, options, /*wants_grad=*/false));
}

std::tuple<Tensor, Tensor> cross_entropy_forward_cpu(const Tensor& input, const Tensor& target,
                                                     const std::optional<Tensor>& weight,
                                                     int64_t reduction, int64_t ignore_index,
                                                     double label_smoothing) {
  TORCH_CHECK(cross_entropy_has_kernel(input, target, weight, label_smoothing),
              "mlp_ext::_cross_entropy_forward takes (N, C) or (C,) logits and class indices; call "
              "mlp_ext::cross_entropy");
  return compute(input, target, {weight, reduction, ignore_index, label_smoothing}, true);
}

}  // namespace mlp_ext
