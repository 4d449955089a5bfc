// The launchers of the fused MLP's backward pass.
#include "fused_mlp_backward.cuh"
#include "fused_mlp_reduce.cuh"

namespace mlp_ext::cuda {

namespace {

template <class T>
FusedPlan plan_of(const FusedBackward<T>& stack, const DeviceInfo& device) {
  if (stack.layers < 1 || stack.layers > kFusedLayers) return {};
  int64_t widths[kFusedLayers + 1] = {stack.layer[0].in};
  for (int l = 0; l < stack.layers; ++l) widths[l + 1] = stack.layer[l].out;
  return fused_backward_plan<T>(widths, stack.layers, stack.rows, device);
}

template <class T>
bool wants_parameters(const FusedBackward<T>& stack) {
  for (int l = 0; l < stack.layers; ++l) {
    if (stack.layer[l].dw != nullptr || stack.layer[l].db != nullptr) return true;
  }
  return false;
}

template <class S, int W>
cudaError_t launch_backward(const FusedBackward<typename S::Type>& stack, const FusedPlan& plan,
                            float* partials, cudaStream_t stream) {
  return launch(backward_stack<S, W>, dim3(static_cast<unsigned>(plan.blocks)),
                dim3(32 * plan.warps), plan.shared, stream, stack, partials, plan.groups);
}

template <class S>
cudaError_t launch_backward(const FusedBackward<typename S::Type>& stack, const FusedPlan& plan,
                            float* partials, cudaStream_t stream) {
  switch (plan.width) {
    case 16:
      return launch_backward<S, 16>(stack, plan, partials, stream);
    case 32:
      return launch_backward<S, 32>(stack, plan, partials, stream);
    case 64:
      return launch_backward<S, 64>(stack, plan, partials, stream);
    default:
      return launch_backward<S, 128>(stack, plan, partials, stream);
  }
}

template <class T>
cudaError_t launch_reduction(const FusedBackward<T>& stack, const FusedPlan& plan,
                             const float* partials, cudaStream_t stream) {
  Reduction<T> work{};
  work.partials = partials;
  work.count = stack.rows > 0 ? plan.partials() : 0;
  work.stride = partial_begin(stack, stack.layers);
  work.layers = stack.layers;
  for (int l = 0; l < stack.layers; ++l) {
    const auto& layer = stack.layer[l];
    work.layer[l] = {static_cast<int>(layer.out), static_cast<int>(layer.in),
                     partial_begin(stack, l), layer.dw, layer.db};
  }
  return launch(reduce_gradients<T>, dim3(static_cast<unsigned>((work.stride + 31) / 32)),
                dim3(32 * kReduceWarps), 32 * kReduceWarps * sizeof(float), stream, work);
}

}  // namespace

template <class T>
size_t fused_mlp_backward_workspace(const FusedBackward<T>& stack, const DeviceInfo& device) {
  if (stack.rows == 0) return 0;
  const FusedPlan plan = plan_of(stack, device);
  if (plan.width == 0) return 0;
  return sizeof(float) * plan.partials() * partial_begin(stack, stack.layers);
}

template <class T>
cudaError_t fused_mlp_backward(const FusedBackward<T>& stack, Precision precision,
                               const DeviceInfo& device, void* workspace, cudaStream_t stream) {
  const FusedPlan plan = plan_of(stack, device);
  if (plan.width == 0) return cudaErrorInvalidValue;
  float* const partials = static_cast<float*>(workspace);
  if (stack.rows > 0) {
    cudaError_t error;
    if constexpr (sizeof(T) == 4) {
      error = precision == Precision::full ? launch_backward<Full>(stack, plan, partials, stream)
                                           : launch_backward<Tf32>(stack, plan, partials, stream);
    } else {
      error = launch_backward<Half<T>>(stack, plan, partials, stream);
    }
    if (error != cudaSuccess) return error;
  }
  if (!wants_parameters(stack)) return cudaSuccess;
  return launch_reduction(stack, plan, partials, stream);
}

#define MLP_INSTANTIATE(T)                                                                       \
  template size_t fused_mlp_backward_workspace(const FusedBackward<T>&, const DeviceInfo&);      \
  template cudaError_t fused_mlp_backward(const FusedBackward<T>&, Precision, const DeviceInfo&, \
                                          void*, cudaStream_t);
MLP_INSTANTIATE(float)
MLP_INSTANTIATE(BFloat16)
MLP_INSTANTIATE(Float16)
#undef MLP_INSTANTIATE

}  // namespace mlp_ext::cuda
