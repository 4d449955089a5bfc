// Which losses the kernels take: see eligibility.h.
#include <ATen/ExpandUtils.h>

#include "../common/loss_kind.h"
#include "eligibility.h"

namespace mlp_ext {

using at::Tensor;

namespace {

// Of the input's dtype, and where it is: PyTorch has its own error for tensors of two devices.
bool is_like(const Tensor& t, const Tensor& input) {
  return has_kernel_type(t) && t.scalar_type() == input.scalar_type() &&
         t.device() == input.device();
}

// A constant of the loss: no gradient is wanted of it.
bool is_constant(const Tensor& t, const Tensor& input) {
  return is_like(t, input) && !t.requires_grad();
}

// One index for each row: (N, d1, ...) to logits (N, C, d1, ...), () to (C,).
bool are_class_indices(const Tensor& target, const Tensor& input) {
  if (target.device() != input.device() || target.scalar_type() != at::kLong ||
      target.layout() != at::kStrided || target.dim() != input.dim() - 1) {
    return false;
  }
  for (int64_t d = 0; d < target.dim(); ++d) {
    if (target.sym_size(d) != input.sym_size(d == 0 ? 0 : d + 1)) return false;
  }
  return true;
}

// The kernels for images count classes in the logits' type.
constexpr int64_t kMostClassesOfImages = 1 << 24;

}  // namespace

bool cross_entropy_has_kernel(const Tensor& input, const Tensor& target,
                              const std::optional<Tensor>& weight, int64_t ignore_index,
                              double label_smoothing) {
  if (!has_kernel_type(input) || input.dim() == 0 || input.sym_numel() == 0) return false;
  const c10::SymInt classes = input.sym_size(input.dim() == 1 ? 0 : 1);
  if (input.dim() > 2 && classes > kMostClassesOfImages) return false;
  if (target.sym_sizes() == input.sym_sizes()) {
    if (!is_constant(target, input) || ignore_index >= 0) return false;
  } else if (!are_class_indices(target, input)) {
    return false;
  }
  if (weight &&
      (!is_constant(*weight, input) || weight->dim() != 1 || weight->sym_size(0) != classes)) {
    return false;
  }
  return label_smoothing >= 0 && label_smoothing <= 1;
}

bool elementwise_loss_has_kernel(const Tensor& input, const Tensor& target,
                                 const std::optional<Tensor>& weight,
                                 const std::optional<Tensor>& pos_weight, int64_t code,
                                 double parameter) {
  TORCH_CHECK_VALUE(code >= 0 && code < kLossCount && code != static_cast<int>(LossKind::bce),
                    "mlp_ext: elementwise loss code ", code, " is none of the op's");
  const auto kind = static_cast<LossKind>(code);
  const bool is_bce = kind == LossKind::bce_with_logits;
  if (!has_kernel_type(input) || input.sym_numel() == 0 || !is_like(target, input) ||
      target.sym_sizes() != input.sym_sizes() || (is_bce && target.requires_grad())) {
    return false;
  }
  if ((kind == LossKind::huber || kind == LossKind::smooth_l1) && !(parameter > 0)) return false;
  if (weight) {
    const bool fits = is_bce ? at::is_expandable_to(weight->sym_sizes(), input.sym_sizes())
                             : weight->sym_sizes() == input.sym_sizes();
    if (!is_constant(*weight, input) || !fits || kind == LossKind::smooth_l1) {
      return false;
    }
  }
  if (pos_weight) {
    const bool fits = pos_weight->dim() <= input.dim() &&
                      (pos_weight->sym_numel() == 1 ||
                       (pos_weight->dim() == 1 && pos_weight->sym_size(0) == input.sym_size(-1)));
    if (!is_constant(*pos_weight, input) || !fits || !is_bce) return false;
  }
  return true;
}

}  // namespace mlp_ext
