// Matrix products of bfloat16.
#include "gemm_launch.cuh"

namespace mlp_ext::cuda {

template <>
size_t gemm_workspace(const GemmArgs<BFloat16>& args, Precision, const DeviceInfo& device) {
  return workspace_bytes<BFloat16, Precision::full>(args, device);
}

template <>
cudaError_t gemm(const GemmArgs<BFloat16>& args, Precision, const DeviceInfo& device,
                 void* workspace, cudaStream_t stream) {
  return multiply_and_finish<BFloat16, Precision::full>(args, device, workspace, stream);
}

}  // namespace mlp_ext::cuda
