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

// How logits (N, C, d1, ...) are given to the kernel: as images of (C, pixels), in which the rows
// of C lie side by side, or as one image of (rows, C).
struct Layout {
  int64_t images, rows, classes;
  bool side_by_side;
};

// Below this many pixels an image fills few of the lanes, and turning the classes to the end is
// cheaper.
constexpr int64_t kFewestPixels = 8;

// True if a row's classes are neighbours, in a tensor of more than two dimensions: channels_last.
bool is_channels_last(const Tensor& t) {
  return t.dim() > 2 && !t.is_contiguous() && t.movedim(1, -1).is_contiguous();
}

Layout layout_of(const Tensor& input) {
  if (input.dim() <= 2) return {1, input.numel() / input.size(-1), input.size(-1), false};
  const int64_t images = input.size(0), classes = input.size(1);
  const int64_t pixels = input.numel() / images / classes;
  const bool side_by_side = pixels >= kFewestPixels && !is_channels_last(input);
  if (side_by_side) return {images, pixels, classes, true};
  return {1, images * pixels, classes, false};
}

// In the order and the type in which the kernel reads it.
Tensor arranged(const Tensor& t, const Layout& layout, at::ScalarType type) {
  const bool turned = t.dim() > 2 && !layout.side_by_side;
  const Tensor in_order = turned ? t.movedim(1, -1) : t;
  if (in_order.dim() <= 2 && in_order.stride(-1) == 1) return in_order.to(type).resolve_neg();
  return in_order.contiguous().to(type).resolve_neg();
}

// Elements from row to row of an arranged tensor.
int64_t row_stride(const Tensor& t, const Layout& layout) {
  if (layout.side_by_side) return 1;
  return t.dim() == 2 ? t.stride(0) : layout.classes;
}

// The scale of the mean. A mean over nothing, or over targets of weight 0, is NaN, as in PyTorch.
double mean_of(double total) { return total == 0 ? std::nan("") : 1 / total; }

// `grad` undefined: the loss alone. All tensors arranged, `loss` for what the reduction gives.
template <class T>
void run(const Tensor& logits, const Tensor& target, const Options& options, const Layout& layout,
         const Tensor& grad, const Tensor& loss) {
  const Tensor weight = options.weight ? options.weight->contiguous() : Tensor();
  cpu::CrossEntropyArgs<T> p{};
  p.classes = layout.classes;
  p.class_stride = layout.side_by_side ? layout.rows : 1;
  p.logits = logits.const_data_ptr<T>(), p.ld_logits = row_stride(logits, layout);
  if (weight.defined()) p.weight = weight.const_data_ptr<T>();
  p.weight_sum = weight.defined() ? sum_of<T>(weight) : double(layout.classes);
  p.ignore_index = options.ignore_index;
  p.label_smoothing = options.label_smoothing;
  double total = double(layout.images * layout.rows);
  if (target.scalar_type() == at::kLong) {
    p.target = target.const_data_ptr<int64_t>();
    total = total_target_weight(target, p.weight, layout.classes, options.ignore_index);
  } else {
    p.probabilities = target.const_data_ptr<T>();
    p.ld_probabilities = row_stride(target, layout);
  }
  const double scale = options.reduction == at::Reduction::Mean ? mean_of(total) : 1;
  p.scale = scale;
  if (grad.defined()) p.grad = grad.mutable_data_ptr<T>(), p.ld_grad = row_stride(grad, layout);
  T* const result = loss.mutable_data_ptr<T>();
  if (options.reduction == at::Reduction::None) p.row_loss = result;
  const double sum = run_cross_entropy(p, layout.images, layout.rows);
  if (options.reduction != at::Reduction::None) *result = T(sum * scale);
}

// What is left of the input's sizes when the classes are gone.
std::vector<int64_t> loss_sizes(const Tensor& input, int64_t reduction) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; reduction == at::Reduction::None && input.dim() > 1 && d < input.dim(); ++d) {
    if (d != 1) sizes.push_back(input.size(d));
  }
  return sizes;
}

std::tuple<Tensor, Tensor> compute(const Tensor& input, const Tensor& target,
                                   const Options& options, bool wants_grad) {
  TORCH_CHECK_VALUE(
      options.reduction >= at::Reduction::None && options.reduction <= at::Reduction::Sum,
      "reduction ", options.reduction, " is not 0 (none), 1 (mean) or 2 (sum)");
  const auto storage = input.scalar_type();
  const auto type = storage == at::kDouble ? at::kDouble : at::kFloat;
  const Layout layout = layout_of(input);
  const Tensor logits = arranged(input, layout, type);
  const Tensor goal =
      target.scalar_type() == at::kLong ? target.contiguous() : arranged(target, layout, type);
  Options converted = options;
  if (options.weight) converted.weight = options.weight->to(type).resolve_neg();
  Tensor grad = wants_grad ? empty_recycled(logits.sizes(), type) : Tensor();
  const Tensor loss = at::empty(loss_sizes(input, options.reduction), logits.options());
  if (type == at::kDouble) {
    run<double>(logits, goal, converted, layout, grad, loss);
  } else {
    run<float>(logits, goal, converted, layout, grad, loss);
  }
  if (wants_grad) {
    grad = grad.to(storage);
    if (input.dim() > 2 && !layout.side_by_side) grad = grad.movedim(-1, 1);
    // As the fake kernel says: contiguous, unless the input is channels_last.
    if (!is_channels_last(input)) grad = grad.contiguous();
  }
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
  const Options options{weight, reduction, ignore_index, label_smoothing};
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
