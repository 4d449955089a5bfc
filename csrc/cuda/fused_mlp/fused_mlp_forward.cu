// The launcher of the fused MLP's forward pass.
#include "fused_mlp_forward.cuh"

namespace mlp_ext::cuda {

namespace {

template <class S, int W>
cudaError_t launch_forward(const FusedForward<typename S::Type>& stack, const FusedPlan& plan,
                           cudaStream_t stream) {
  return launch(forward_stack<S, W>, dim3(static_cast<unsigned>(plan.blocks)),
                dim3(32 * plan.warps), plan.shared, stream, stack, plan.slots);
}

template <class S>
cudaError_t launch_forward(const FusedForward<typename S::Type>& stack, const FusedPlan& plan,
                           cudaStream_t stream) {
  switch (plan.width) {
    case 16:
      return launch_forward<S, 16>(stack, plan, stream);
    case 32:
      return launch_forward<S, 32>(stack, plan, stream);
    case 64:
      return launch_forward<S, 64>(stack, plan, stream);
    case 128:
      return launch_forward<S, 128>(stack, plan, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace

template <class T>
cudaError_t fused_mlp_forward(const FusedForward<T>& stack, Precision precision,
                              const DeviceInfo& device, cudaStream_t stream) {
  if (stack.rows == 0) return cudaSuccess;
  if (stack.layers < 1 || stack.layers > kFusedLayers) return cudaErrorInvalidValue;
  int64_t widths[kFusedLayers + 1] = {stack.layer[0].in};
  for (int l = 0; l < stack.layers; ++l) widths[l + 1] = stack.layer[l].out;
  const FusedPlan plan = fused_forward_plan<T>(widths, stack.layers, stack.rows, device);
  if constexpr (sizeof(T) == 4) {
    return precision == Precision::full ? launch_forward<Full>(stack, plan, stream)
                                        : launch_forward<Tf32>(stack, plan, stream);
  } else {
    return launch_forward<Half<T>>(stack, plan, stream);
  }
}

template cudaError_t fused_mlp_forward(const FusedForward<float>&, Precision, const DeviceInfo&,
                                       cudaStream_t);
template cudaError_t fused_mlp_forward(const FusedForward<BFloat16>&, Precision, const DeviceInfo&,
                                       cudaStream_t);
template cudaError_t fused_mlp_forward(const FusedForward<Float16>&, Precision, const DeviceInfo&,
                                       cudaStream_t);

}  // namespace mlp_ext::cuda
