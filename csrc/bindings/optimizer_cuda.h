// The CUDA half of the optimizers' step and of clip_grad_norm_; without it nothing here is called,
// as is_cuda_kernel_device is false for every device.
#pragma once

#include "optimizer_items.h"

namespace mlp_ext {

// What torch.amp.GradScaler leaves to an optimizer: float32 scalars, or undefined.
struct Scaling {
  at::Tensor grad_scale;  // the gradients are to be divided by it, and left divided
  at::Tensor found_inf;   // unless it is 0 nothing is to change, not the counters either

  bool any() const { return grad_scale.defined() || found_inf.defined(); }
};

#if defined(MLP_EXT_WITH_CUDA)

// Whether the current stream is being captured into a CUDA graph.
bool is_capturing();

// Updates every item, which are on CUDA, of any devices. lr[item.group]: defined for a learning
// rate on the device.
void update_cuda(const std::vector<Item>& items, const std::vector<at::Tensor>& lr,
                 const Scaling& scaling);

// Scales the gradients, float32 or float64 on one device; returns the norm, which stays there.
at::Tensor clip_cuda(const std::vector<at::Tensor>& grads, double max_norm);

#else

inline bool is_capturing() { return false; }
inline void update_cuda(const std::vector<Item>&, const std::vector<at::Tensor>&, const Scaling&) {}
inline at::Tensor clip_cuda(const std::vector<at::Tensor>&, double) { return {}; }

#endif

}  // namespace mlp_ext
