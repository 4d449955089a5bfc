// Precision::tf32 of gemm.h, in a file of its own so that it compiles beside the other.
#pragma once

#include "gemm.h"

namespace mlp_ext::cuda {

size_t gemm_tf32_workspace(const GemmArgs<float>& args, const DeviceInfo& device);
cudaError_t gemm_tf32(const GemmArgs<float>& args, const DeviceInfo& device, void* workspace,
                      cudaStream_t stream);

}  // namespace mlp_ext::cuda
