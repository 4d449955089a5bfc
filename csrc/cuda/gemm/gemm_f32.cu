// Matrix products of float32, as accurate as float32 arithmetic.
#include "gemm_tf32.h"
#include "gemm_launch.cuh"

namespace mlp_ext::cuda {

template <>
size_t gemm_workspace(const GemmArgs<float>& args, Precision precision, const DeviceInfo& device) {
  if (precision == Precision::tf32) return gemm_tf32_workspace(args, device);
  return workspace_bytes<float, Precision::full>(args, device);
}

template <>
cudaError_t gemm(const GemmArgs<float>& args, Precision precision, const DeviceInfo& device,
                 void* workspace, cudaStream_t stream) {
  if (precision == Precision::tf32) return gemm_tf32(args, device, workspace, stream);
  return multiply_and_finish<float, Precision::full>(args, device, workspace, stream);
}

}  // namespace mlp_ext::cuda
