// The losses in PyTorch's own differentiable operators: see composite.h.
#include <ATen/TensorOperators.h>
#include <ATen/core/Reduction.h>
#include <ATen/ops/binary_cross_entropy_with_logits.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/huber_loss.h>
#include <ATen/ops/l1_loss.h>
#include <ATen/ops/mse_loss.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/smooth_l1_loss.h>
#include <ATen/ops/where.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros_like.h>

#include "composite.h"
#include "cross_entropy_tensors.h"

namespace mlp_ext {

using at::Tensor;

Tensor cross_entropy_composite(const Tensor& input, const Tensor& target,
                               const std::optional<Tensor>& weight, int64_t reduction,
                               int64_t ignore_index, double label_smoothing) {
  check_reduction(reduction);
  return at::cross_entropy_loss(input, target, weight, reduction, ignore_index, label_smoothing);
}

namespace {

// (N, C, d1, ...) as rows (N d1 ..., C).
Tensor as_rows(const Tensor& t) {
  if (t.dim() == 1) return t.unsqueeze(0);
  return t.movedim(1, -1).reshape_symint({-1, t.sym_size(1)});
}

// Of class indices: one-hot, smoothed and weighted, 0 where ignored. `hit`: the targets' weights.
Tensor distribution_of(const Tensor& target, const Tensor& logits, const Tensor& class_weight,
                       int64_t ignore_index, double label_smoothing, Tensor& hit) {
  const Tensor classes = target.reshape({-1});
  const Tensor kept = classes.ne(ignore_index);
  const Tensor index = classes.masked_fill(kept.logical_not(), 0).unsqueeze(1);
  hit = class_weight.index_select(0, index.squeeze(1)).mul(kept).unsqueeze(1);
  const Tensor q = at::zeros_like(logits).scatter(1, index, (1 - label_smoothing) * hit);
  if (label_smoothing == 0) return q;
  return q + class_weight.mul(label_smoothing).div(logits.sym_size(1)) * kept.unsqueeze(1);
}

}  // namespace

namespace {

// 16-bit types are computed in float32 and rounded once, as in the kernels.
at::ScalarType precise(at::ScalarType type) {
  return type == at::kHalf || type == at::kBFloat16 ? at::kFloat : type;
}

// The float32 of a 16-bit tensor; others, class indices among them, as they are.
Tensor precise(const Tensor& t) { return t.to(precise(t.scalar_type())); }
std::optional<Tensor> precise(const std::optional<Tensor>& t) {
  return t ? std::optional<Tensor>(precise(*t)) : std::nullopt;
}

}  // namespace

// With q the target distribution of a row and Q its sum: grad * (Q softmax(x) - q), for the mean
// over the sum of the targets' weights, or with probabilities over the number of rows.
Tensor cross_entropy_backward_composite(const Tensor& grad, const Tensor& input,
                                        const Tensor& target, const std::optional<Tensor>& weight,
                                        int64_t reduction, int64_t ignore_index,
                                        double label_smoothing) {
  if (precise(input.scalar_type()) != input.scalar_type()) {
    return cross_entropy_backward_composite(precise(grad), precise(input), precise(target),
                                            precise(weight), reduction, ignore_index,
                                            label_smoothing)
        .to(input.scalar_type());
  }
  const Tensor logits = as_rows(input);
  const Tensor class_weight = weight ? weight->to(logits.scalar_type())
                                     : at::ones_symint({logits.sym_size(1)}, logits.options());
  Tensor q, row_grad = grad.reshape({-1, 1});
  if (target.is_floating_point()) {
    const Tensor uniform = class_weight.mul(label_smoothing).div(logits.sym_size(1));
    q = as_rows(target) * class_weight * (1 - label_smoothing) + uniform;
    if (reduction == at::Reduction::Mean) row_grad = row_grad / logits.sym_size(0);
  } else {
    Tensor hit;
    q = distribution_of(target, logits, class_weight, ignore_index, label_smoothing, hit);
    if (reduction == at::Reduction::Mean) row_grad = row_grad / hit.sum();
    // As PyTorch: no gradient of ignored rows, also where they leave nothing to divide by.
    row_grad = at::where(target.reshape({-1, 1}).eq(ignore_index), 0, row_grad);
  }
  const Tensor dx = row_grad * (q.sum(1, /*keepdim=*/true) * at::softmax(logits, 1) - q);
  if (input.dim() <= 2) return dx.reshape_symint(input.sym_sizes());
  return dx.reshape_symint(input.movedim(1, -1).sym_sizes()).movedim(-1, 1);
}

namespace {

Tensor reduced(const Tensor& each, int64_t reduction) {
  if (reduction == at::Reduction::None) return each;
  return reduction == at::Reduction::Mean ? each.mean() : each.sum();
}

// torch.nn.functional divides these by the sum of the weights, huber_loss by the number of
// elements.
bool is_mean_by_weight(LossKind kind) { return kind == LossKind::mse || kind == LossKind::l1; }

}  // namespace

LossKind checked_loss(int64_t code) {
  TORCH_CHECK_VALUE(code >= 0 && code < kLossCount && code != static_cast<int>(LossKind::bce),
                    "mlp_ext: elementwise loss code ", code, " is none of the op's");
  return static_cast<LossKind>(code);
}

Tensor elementwise_loss_composite(const Tensor& input, const Tensor& target,
                                  const std::optional<Tensor>& weight,
                                  const std::optional<Tensor>& pos_weight, int64_t code,
                                  int64_t reduction, double parameter) {
  const LossKind kind = checked_loss(code);
  check_reduction(reduction);
  if (kind == LossKind::bce_with_logits) {
    return at::binary_cross_entropy_with_logits(input, target, weight, pos_weight, reduction);
  }
  TORCH_CHECK_VALUE(!pos_weight, "mlp_ext: pos_weight is for binary_cross_entropy_with_logits");
  const int64_t inner = weight ? int64_t{at::Reduction::None} : reduction;
  Tensor loss;
  switch (kind) {
    case LossKind::mse:
      loss = weight ? at::pow(input - target, 2) : at::mse_loss(input, target, inner);
      break;
    case LossKind::l1:
      loss = at::l1_loss(input, target, inner);
      break;
    case LossKind::huber:
      loss = at::huber_loss(input, target, inner, parameter);
      break;
    default:  // smooth_l1
      TORCH_CHECK_VALUE(!weight, "mlp_ext: smooth_l1_loss has no weight");
      return at::smooth_l1_loss(input, target, inner, parameter);
  }
  if (!weight) return loss;
  loss = loss * *weight;
  if (reduction == at::Reduction::Mean && is_mean_by_weight(kind)) {
    return loss.sum() / weight->sum();
  }
  return reduced(loss, reduction);
}

namespace {

// d loss / d input of each element.
Tensor slope_composite(const Tensor& x, const Tensor& t, const std::optional<Tensor>& pos_weight,
                       LossKind kind, double parameter) {
  switch (kind) {
    case LossKind::mse:
      return 2 * (x - t);
    case LossKind::l1:
      return (x - t).sgn();
    case LossKind::huber:
      return at::clamp(x - t, -parameter, parameter);
    case LossKind::smooth_l1:
      return at::clamp((x - t) / parameter, -1, 1);
    default: {  // bce_with_logits
      // By the smaller of the two sigmoids, as the kernels; each has its derivative also at 0.
      const Tensor rest = 1 - t, hit = pos_weight ? *pos_weight * t : t;
      const auto both = [&](const Tensor& small) {
        return pos_weight ? (hit + rest) * small : small;
      };
      return at::where(x > 0, rest - both(at::sigmoid(-x)), both(at::sigmoid(x)) - hit);
    }
  }
}

}  // namespace

Tensor elementwise_loss_backward_composite(const Tensor& grad, const Tensor& input,
                                           const Tensor& target,
                                           const std::optional<Tensor>& weight,
                                           const std::optional<Tensor>& pos_weight, int64_t code,
                                           int64_t reduction, double parameter) {
  if (precise(input.scalar_type()) != input.scalar_type()) {
    return elementwise_loss_backward_composite(precise(grad), precise(input), precise(target),
                                               precise(weight), precise(pos_weight), code,
                                               reduction, parameter)
        .to(input.scalar_type());
  }
  const auto kind = static_cast<LossKind>(code);
  Tensor dx = grad * slope_composite(input, target, pos_weight, kind, parameter);
  if (weight) dx = dx * *weight;
  if (reduction != at::Reduction::Mean) return dx;
  return weight && is_mean_by_weight(kind) ? dx / weight->sum() : dx / input.sym_numel();
}

}  // namespace mlp_ext
