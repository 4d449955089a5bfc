// One step of an optimizer for a list of parameters of one storage type, on one device.
#pragma once

#include "../../common/half.h"
#include "../../common/optimizer_args.h"
#include "../cuda_api.h"
#include "../device_info.h"

namespace mlp_ext::cuda {

// One parameter, its gradient and its states, n elements each; null for what the options do not
// call for. `master`: the float32 weight of a 16-bit parameter.
struct StepTensor {
  void* param;
  void* grad;
  void* states[kMostStates];
  float* master;
  int64_t n;
};

// Counters that lie on the device: float32, or float64 where so said. Null where the rule has none.
struct StepCounters {
  void* step;        // is counted up by the step
  void* mu_product;  // NAdam's
  bool step_in_double, mu_in_double;
};

// float32 scalars on the device, or null.
struct StepScaling {
  const float* grad_scale = nullptr;  // the gradients are divided by it, and left divided
  const float* found_inf = nullptr;   // unless it is 0 nothing is changed
};

struct DeviceScalar {
  const void* value = nullptr;
  bool in_double = false;
};

// Args: one of common/optimizer_args.h, with what depends on the step worked out. W: what states
// are stored as: S, or float for bfloat16 and float16 with masters.
template <class Args, class S, class W>
cudaError_t optimizer_step(const Args& args, const StepTensor* tensors, int64_t count,
                           const StepScaling& scaling, const DeviceInfo& device,
                           cudaStream_t stream);

// The same, with what depends on the step worked out on the device. counters: one a tensor, or null
// for a rule that has none; lr: unless null, in place of args.lr. workspace: as many bytes as
// optimizer_workspace says, aligned to 16.
template <class Args, class S, class W>
cudaError_t optimizer_step_on_device(const Args& args, const StepTensor* tensors,
                                     const StepCounters* counters, int64_t count, DeviceScalar lr,
                                     const StepScaling& scaling, void* workspace,
                                     const DeviceInfo& device, cudaStream_t stream);

constexpr size_t kMostRuleBytes = 128;
inline size_t optimizer_workspace(int64_t count) { return kMostRuleBytes * count; }

}  // namespace mlp_ext::cuda
