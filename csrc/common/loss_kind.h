// The list of elementwise losses: code name and functor (elementwise_losses.h). The order of the
// rows is the integer code that the registered op carries, so exported programs depend on it:
// append only.
#pragma once

#define MLP_FOR_EACH_LOSS(X)            \
  X(mse, MseLoss)                       \
  X(l1, L1Loss)                         \
  X(huber, HuberLoss)                   \
  X(smooth_l1, SmoothL1Loss)            \
  X(bce_with_logits, BceWithLogitsLoss) \
  X(bce, BceLoss)

namespace mlp_ext {

enum class LossKind : int {
#define MLP_ROW(name, Functor) name,
  MLP_FOR_EACH_LOSS(MLP_ROW)
#undef MLP_ROW
};

constexpr const char* kLossNames[] = {
#define MLP_ROW(name, Functor) #name,
    MLP_FOR_EACH_LOSS(MLP_ROW)
#undef MLP_ROW
};

constexpr int kLossCount = sizeof(kLossNames) / sizeof(kLossNames[0]);

}  // namespace mlp_ext
