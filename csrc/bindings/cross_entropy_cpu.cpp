// Softmax cross-entropy on the CPU: checks of the targets, then the kernel. The gradient is worked
// out with the loss, in one pass over the logits.
#include <ATen/core/Reduction.h>
#include <ATen/ops/empty.h>

#include <cmath>

#include "class_targets.h"
#include "composite.h"
#include "cpu_kernels.h"
#include "cross_entropy_tensors.h"
#include "eligibility.h"
#include "implementations.h"
#include "recycling.h"

namespace mlp_ext {

using at::Tensor;

namespace {

// The scale of the mean. A mean over nothing, or over targets of weight 0, is NaN, as in PyTorch.
double mean_of(double total) { return total == 0 ? std::nan("") : 1 / total; }

// `grad` undefined: the loss alone. All tensors arranged, `loss` for what the reduction gives.
template <class T>
void run(const Tensor& logits, const Tensor& target, const CrossEntropyOptions& options,
         const CrossEntropyLayout& layout, const Tensor& grad, const Tensor& loss) {
  const Tensor weight = options.weight.value_or(Tensor());
  cpu::CrossEntropyArgs<T> p{};
  p.classes = layout.classes;
  p.class_stride = layout.class_stride();
  p.logits = data_of<T>(logits), p.ld_logits = row_stride_of(logits, layout);
  p.weight = data_of<T>(weight);
  p.weight_sum = weight.defined() ? sum_of<T>(weight) : double(layout.classes);
  p.ignore_index = options.ignore_index;
  p.label_smoothing = options.label_smoothing;
  double total = double(layout.images * layout.rows);
  if (target.scalar_type() == at::kLong) {
    p.target = data_of<int64_t>(target);
    total = total_target_weight(target, p.weight, layout.classes, options.ignore_index);
  } else {
    p.probabilities = data_of<T>(target);
    p.ld_probabilities = row_stride_of(target, layout);
  }
  const double scale = options.reduction == at::Reduction::Mean ? mean_of(total) : 1;
  p.scale = scale;
  if (grad.defined()) p.grad = mutable_data_of<T>(grad), p.ld_grad = row_stride_of(grad, layout);
  T* const result = mutable_data_of<T>(loss);
  if (options.reduction == at::Reduction::None) p.row_loss = result;
  const double sum = run_cross_entropy(p, layout.images, layout.rows);
  if (options.reduction != at::Reduction::None) *result = T(sum * scale);
}

std::tuple<Tensor, Tensor> compute(const Tensor& input, const Tensor& target,
                                   const CrossEntropyOptions& options, bool wants_grad) {
  check_reduction(options.reduction);
  const auto storage = input.scalar_type();
  const auto type = storage == at::kDouble ? at::kDouble : at::kFloat;
  const CrossEntropyLayout layout = layout_of(input);
  const Tensor logits = arranged(input, layout, type);
  const Tensor goal = target.scalar_type() == at::kLong ? contiguous_in(target, at::kLong)
                                                        : arranged(target, layout, type);
  CrossEntropyOptions converted = options;
  if (options.weight) converted.weight = contiguous_in(*options.weight, type).resolve_neg();
  Tensor grad = wants_grad ? empty_recycled(logits.sizes(), type) : Tensor();
  const Tensor loss = at::empty(cross_entropy_sizes(input, options.reduction), logits.options());
  if (type == at::kDouble) {
    run<double>(logits, goal, converted, layout, grad, loss);
  } else {
    run<float>(logits, goal, converted, layout, grad, loss);
  }
  if (wants_grad) grad = in_order_of(input, grad, layout);
  return {loss.to(storage), grad};
}

}  // namespace

Tensor cross_entropy_cpu(const Tensor& input, const Tensor& target,
                         const std::optional<Tensor>& weight, int64_t reduction,
                         int64_t ignore_index, double label_smoothing) {
  if (!cross_entropy_has_kernel(input, target, weight, ignore_index, label_smoothing)) {
    return cross_entropy_composite(input, target, weight, reduction, ignore_index, label_smoothing)
        .contiguous();
  }
  const CrossEntropyOptions options{weight, reduction, ignore_index, label_smoothing};
  return std::get<0>(compute(input, target, options, /*wants_grad=*/false));
}

std::tuple<Tensor, Tensor> cross_entropy_forward_cpu(const Tensor& input, const Tensor& target,
                                                     const std::optional<Tensor>& weight,
                                                     int64_t reduction, int64_t ignore_index,
                                                     double label_smoothing) {
  TORCH_CHECK(cross_entropy_has_kernel(input, target, weight, ignore_index, label_smoothing),
              "mlp_ext::_cross_entropy_forward got tensors that the kernels do not take; call "
              "mlp_ext::cross_entropy");
  return compute(input, target, {weight, reduction, ignore_index, label_smoothing}, true);
}

}  // namespace mlp_ext
