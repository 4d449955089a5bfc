// The elementwise losses on the CPU: tensors made ready for the kernel. The gradient with respect
// to the input is worked out with the loss, in one pass.
#include <ATen/core/Reduction.h>
#include <ATen/ops/empty.h>

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

struct Options {
  std::optional<Tensor> weight, pos_weight;
  LossKind kind;
  int64_t reduction;
  double parameter;
};

// All tensors contiguous and of type T; `grad` undefined: the loss alone.
template <class T>
void run(const Tensor& input, const Tensor& target, const Options& options, const Tensor& grad,
         const Tensor& loss) {
  cpu::ElementwiseLossArgs<T> p{};
  p.kind = options.kind;
  // One element a row, which the kernel takes as one run, unless the columns differ.
  const bool by_column = options.pos_weight && options.pos_weight->numel() > 1;
  p.columns = by_column ? input.size(-1) : 1;
  p.input = data_of<T>(input), p.ld_input = p.columns;
  p.target = data_of<T>(target), p.ld_target = p.columns;
  if (options.weight) p.weight = data_of<T>(*options.weight), p.ld_weight = p.columns;
  if (options.pos_weight) p.pos_weight = data_of<T>(*options.pos_weight);
  p.parameter = options.parameter;
  p.scale = 1;
  if (options.reduction == at::Reduction::Mean) {
    // torch.nn.functional divides these two by the sum of the weights.
    const bool by_weight =
        options.weight && (options.kind == LossKind::mse || options.kind == LossKind::l1);
    p.scale = 1 / (by_weight ? sum_of<T>(*options.weight) : double(input.numel()));
  }
  if (grad.defined()) p.grad = mutable_data_of<T>(grad), p.ld_grad = p.columns;
  T* const result = mutable_data_of<T>(loss);
  if (options.reduction == at::Reduction::None) p.value = result, p.ld_value = p.columns;
  const double sum = run_elementwise_loss(p, input.numel() / p.columns);
  if (options.reduction != at::Reduction::None) *result = T(sum * p.scale);
}

std::tuple<Tensor, Tensor> compute(const Tensor& input, const Tensor& target, Options options,
                                   bool wants_grad) {
  check_reduction(options.reduction);
  const auto storage = input.scalar_type();
  const auto type = storage == at::kDouble ? at::kDouble : at::kFloat;
  const auto ready = [&](const Tensor& t) { return contiguous_in(t, type).resolve_neg(); };
  const Tensor x = ready(input), t = ready(target);
  if (options.weight) options.weight = ready(options.weight->expand(input.sizes()));
  if (options.pos_weight) options.pos_weight = ready(*options.pos_weight);
  const bool each = options.reduction == at::Reduction::None;
  const Tensor loss =
      each ? empty_recycled(input.sizes(), type) : at::empty({}, input.options().dtype(type));
  const Tensor grad = wants_grad ? empty_recycled(input.sizes(), type) : Tensor();
  if (type == at::kDouble) {
    run<double>(x, t, options, grad, loss);
  } else {
    run<float>(x, t, options, grad, loss);
  }
  return {loss.to(storage), grad};
}

}  // namespace

Tensor elementwise_loss_cpu(const Tensor& input, const Tensor& target,
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

std::tuple<Tensor, Tensor> elementwise_loss_forward_cpu(const Tensor& input, const Tensor& target,
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
