// Launchers of optimizers.cuh, for optimizers.cu to instantiate.
#pragma once

#include "optimizers.cuh"

namespace mlp_ext::cuda {

namespace {

// The rule that goes with its options.
template <class Args>
struct RuleFor;
#define MLP_RULE(name, Name)    \
  template <>                   \
  struct RuleFor<Name##Args> {  \
    template <class V>          \
    using type = Name##Rule<V>; \
  };
MLP_FOR_EACH_RULE(MLP_RULE)
#undef MLP_RULE

template <class Args, class S>
using RuleOn = typename RuleFor<Args>::template type<Vec<ComputeType<S>>>;

// `rules`: one a tensor, or null.
template <class Args, class S, class W>
cudaError_t launch_steps(const RuleOn<Args, S>& rule, const RuleOn<Args, S>* rules,
                         const StepTensor* tensors, int64_t count, const StepScaling& scaling,
                         const DeviceInfo& device, cudaStream_t stream) {
  // Beyond 65536 elements a block is long enough, and more blocks even out the end.
  constexpr int64_t kMostChunk = 65536;
  StepParameters<RuleOn<Args, S>> p{{}, rule, rules, scaling};
  static_assert(sizeof p <= kMostParameterBytes);
  for (int64_t first = 0; first < count; first += kMostTensors) {
    const int64_t some = std::min<int64_t>(kMostTensors, count - first);
    const int64_t total = total_elements(tensors + first, some);
    const int64_t chunk = std::min(kMostChunk, even_chunk(total, device.multiprocessors));
    const int blocks = fill(p.list, tensors + first, some, chunk);
    if (rules) p.rules = rules + first;
    if (blocks == 0) continue;
    const cudaError_t error = launch(optimizer_step_kernel<RuleFor<Args>::template type, S, W>,
                                     dim3(blocks), dim3(kMultiTensorThreads), 0, stream, p);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

template <class Args, class S, class W>
cudaError_t optimizer_step(const Args& args, const StepTensor* tensors, int64_t count,
                           const StepScaling& scaling, const DeviceInfo& device,
                           cudaStream_t stream) {
  return launch_steps<Args, S, W>(RuleOn<Args, S>(args), nullptr, tensors, count, scaling, device,
                                  stream);
}

template <class Args, class S, class W>
cudaError_t optimizer_step_on_device(const Args& args, const StepTensor* tensors,
                                     const StepCounters* counters, int64_t count, DeviceScalar lr,
                                     const StepScaling& scaling, void* workspace,
                                     const DeviceInfo& device, cudaStream_t stream) {
  using Rule = RuleOn<Args, S>;
  static_assert(sizeof(Rule) <= kMostRuleBytes);
  Rule* const rules = static_cast<Rule*>(workspace);
  CountParameters<Args, Rule> p{args, lr, scaling.found_inf, nullptr, 0, counters != nullptr, {}};
  static_assert(sizeof p <= kMostParameterBytes);
  for (int64_t first = 0; first < count; first += kMostTensors) {
    p.count = static_cast<int>(std::min<int64_t>(kMostTensors, count - first));
    p.rules = rules + first;
    if (counters) std::copy(counters + first, counters + first + p.count, p.counters);
    const cudaError_t error =
        launch(count_up<Args, Rule>, dim3(1), dim3(kMostTensors), 0, stream, p);
    if (error != cudaSuccess) return error;
  }
  return launch_steps<Args, S, W>(Rule(args), rules, tensors, count, scaling, device, stream);
}

}  // namespace mlp_ext::cuda
