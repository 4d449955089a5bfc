// Matrix products of float32 with operands rounded to tf32.
#include "gemm_tf32.h"
#include "gemm_launch.cuh"

namespace mlp_ext::cuda {

size_t gemm_tf32_workspace(const GemmArgs<float>& args, const DeviceInfo& device) {
  return workspace_bytes<float, Precision::tf32>(args, device);
}

cudaError_t gemm_tf32(const GemmArgs<float>& args, const DeviceInfo& device, void* workspace,
                      cudaStream_t stream) {
  return multiply_and_finish<float, Precision::tf32>(args, device, workspace, stream);
}

}  // namespace mlp_ext::cuda
