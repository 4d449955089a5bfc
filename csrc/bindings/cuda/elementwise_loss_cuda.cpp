// The elementwise losses on CUDA: value and gradient in one pass, and no step waits for the device.
#include "../../cuda/losses/elementwise_loss.h"

#include <ATen/core/Reduction.h>
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

struct Options {
  std::optional<Tensor> weight, pos_weight;
  LossKind kind;
  int64_t reduction;
  double parameter;
};

// All tensors contiguous and of T's dtype; `grad` undefined: the loss alone.
template <class T>
void run(const Tensor& input, const Tensor& target, const Options& options, const Tensor& grad,
         const Tensor& loss, const DeviceScope& device) {
  cuda::ElementwiseLossArgs<T> args{};
  args.kind = options.kind;
  args.n = input.numel();
  args.columns = options.pos_weight ? options.pos_weight->numel() : 1;
  args.input = data_of<T>(input);
  args.target = data_of<T>(target);
  args.weight = data_of<T>(options.weight.value_or(Tensor()));
  args.pos_weight = data_of<T>(options.pos_weight.value_or(Tensor()));
  args.parameter = options.parameter;
  args.reduction = static_cast<cuda::Reduction>(options.reduction);
  // torch.nn.functional divides these two by the sum of the weights.
  args.mean_by_weight =
      options.weight && (options.kind == LossKind::mse || options.kind == LossKind::l1);
  args.grad = mutable_data_of<cuda::LossGradient<T>>(grad);
  args.loss = mutable_data_of<T>(loss);
  const cuda::DeviceInfo info = device.info();
  const Tensor memory = workspace(input, cuda::elementwise_loss_workspace(args.reduction, info));
  check_launch(cuda::elementwise_loss(args, pointer_to(memory), info, device.stream()));
}

std::tuple<Tensor, Tensor> compute(const Tensor& input, const Tensor& target, Options options,
                                   bool wants_grad) {
  check_reduction(options.reduction);
  const DeviceScope device(input);
  const auto ready = [](const Tensor& t) {
    return contiguous_in(t, t.scalar_type()).resolve_neg();
  };
  const Tensor x = ready(input), t = ready(target);
  if (options.weight) options.weight = ready(options.weight->expand(input.sizes()));
  if (options.pos_weight) options.pos_weight = ready(*options.pos_weight);
  const bool each = options.reduction == at::Reduction::None;
  const Tensor loss = at::empty(each ? input.sizes() : at::IntArrayRef(), input.options());
  const Tensor grad = wants_grad ? empty_gradient(input, input.sizes()) : Tensor();
  with_storage_type(input,
                    [&](auto type) { run<decltype(type)>(x, t, options, grad, loss, device); });
  return {loss, grad};
}

}  // namespace

Tensor elementwise_loss_cuda(const Tensor& input, const Tensor& target,
                             const std::optional<Tensor>& weight,
                             const std::optional<Tensor>& pos_weight, int64_t kind,
                             int64_t reduction, double parameter) {
  if (!elementwise_loss_has_kernel(input, target, weight, pos_weight, kind, parameter)) {
    return elementwise_loss_composite(input, target, weight, pos_weight, kind, reduction, parameter)
        .contiguous();
  }
  const Options options{weight, pos_weight, static_cast<LossKind>(kind), reduction, parameter};
  return std::get<0>(compute(input, target, options, /*wants_grad=*/false));
}

std::tuple<Tensor, Tensor> elementwise_loss_forward_cuda(const Tensor& input, const Tensor& target,
                                                         const std::optional<Tensor>& weight,
                                                         const std::optional<Tensor>& pos_weight,
                                                         int64_t kind, int64_t reduction,
                                                         double parameter) {
  TORCH_CHECK(elementwise_loss_has_kernel(input, target, weight, pos_weight, kind, parameter),
              "mlp_ext::_elementwise_loss_forward got tensors that the kernels do not take; call "
              "mlp_ext::elementwise_loss");
  const Options options{weight, pos_weight, static_cast<LossKind>(kind), reduction, parameter};
  return compute(input, target, options, /*wants_grad=*/true);
}

}  // namespace mlp_ext
