// Matrix products of float16.
#include "gemm_launch.cuh"

namespace mlp_ext::cuda {

template <>
size_t gemm_workspace(const GemmArgs<Float16>& args, Precision, const DeviceInfo& device) {
  return workspace_bytes<Float16, Precision::full>(args, device);
}

template <>
cudaError_t gemm(const GemmArgs<Float16>& args, Precision, const DeviceInfo& device,
                 void* workspace, cudaStream_t stream) {
  return multiply_and_finish<Float16, Precision::full>(args, device, workspace, stream);
}

}  // namespace mlp_ext::cuda
