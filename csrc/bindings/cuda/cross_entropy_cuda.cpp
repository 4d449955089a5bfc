// Softmax cross-entropy on CUDA. The gradient is worked out with the loss, in one pass over the
// logits; no step waits for the device. So nobody can raise for a class index out of range: the
// loss and the gradient become NaN (see ../../cuda/losses/cross_entropy.h).
#include "../../cuda/losses/cross_entropy.h"

#include <ATen/ops/empty.h>

#include "../composite.h"
#include "../cross_entropy_tensors.h"
#include "../eligibility.h"
#include "../implementations.h"
#include "../stack_tensors.h"
#include "launching.h"

namespace mlp_ext {

using at::Tensor;

namespace {

// All tensors arranged and of T's dtype; `grad` undefined: the loss alone.
template <class T>
void run(const Tensor& logits, const Tensor& target, const CrossEntropyOptions& options,
         const CrossEntropyLayout& layout, const Tensor& grad, const Tensor& loss,
         const DeviceScope& device) {
  const Tensor weight = options.weight
                            ? contiguous_in(*options.weight, logits.scalar_type()).resolve_neg()
                            : Tensor();
  cuda::CrossEntropyArgs<T> args{};
  args.images = layout.images, args.rows = layout.rows, args.classes = layout.classes;
  args.class_stride = layout.class_stride();
  args.logits = data_of<T>(logits), args.ld_logits = row_stride_of(logits, layout);
  if (target.scalar_type() == at::kLong) {
    args.target = data_of<int64_t>(target);
  } else {
    args.probabilities = data_of<T>(target);
    args.ld_probabilities = row_stride_of(target, layout);
  }
  args.weight = data_of<T>(weight);
  args.ignore_index = options.ignore_index;
  args.label_smoothing = options.label_smoothing;
  args.reduction = static_cast<cuda::Reduction>(options.reduction);
  if (grad.defined()) {
    args.grad = mutable_data_of<cuda::LossGradient<T>>(grad),
    args.ld_grad = row_stride_of(grad, layout);
  }
  args.loss = mutable_data_of<T>(loss);
  const cuda::DeviceInfo info = device.info();
  const Tensor memory = workspace(logits, cuda::cross_entropy_workspace(args.reduction, info));
  check_launch(cuda::cross_entropy(args, pointer_to(memory), info, device.stream()));
}

std::tuple<Tensor, Tensor> compute(const Tensor& input, const Tensor& target,
                                   const CrossEntropyOptions& options, bool wants_grad) {
  check_reduction(options.reduction);
  const DeviceScope device(input);
  const auto type = input.scalar_type();
  const CrossEntropyLayout layout = layout_of(input);
  const Tensor logits = arranged(input, layout, type);
  const Tensor goal = target.scalar_type() == at::kLong ? contiguous_in(target, at::kLong)
                                                        : arranged(target, layout, type);
  const Tensor grad = wants_grad ? empty_gradient(input, logits.sizes()) : Tensor();
  const Tensor loss = at::empty(cross_entropy_sizes(input, options.reduction), input.options());
  with_storage_type(
      input, [&](auto t) { run<decltype(t)>(logits, goal, options, layout, grad, loss, device); });
  return {loss, wants_grad ? in_order_of(input, grad, layout) : grad};
}

}  // namespace

Tensor cross_entropy_cuda(const Tensor& input, const Tensor& target,
                          const std::optional<Tensor>& weight, int64_t reduction,
                          int64_t ignore_index, double label_smoothing) {
  if (!cross_entropy_has_kernel(input, target, weight, ignore_index, label_smoothing)) {
    return cross_entropy_composite(input, target, weight, reduction, ignore_index, label_smoothing)
        .contiguous();
  }
  return std::get<0>(
      compute(input, target, {weight, reduction, ignore_index, label_smoothing}, false));
}

std::tuple<Tensor, Tensor> cross_entropy_forward_cuda(const Tensor& input, const Tensor& target,
                                                      const std::optional<Tensor>& weight,
                                                      int64_t reduction, int64_t ignore_index,
                                                      double label_smoothing) {
  TORCH_CHECK(cross_entropy_has_kernel(input, target, weight, ignore_index, label_smoothing),
              "mlp_ext::_cross_entropy_forward got tensors that the kernels do not take; call "
              "mlp_ext::cross_entropy");
  return compute(input, target, {weight, reduction, ignore_index, label_smoothing}, true);
}

}  // namespace mlp_ext
