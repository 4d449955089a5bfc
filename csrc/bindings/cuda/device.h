// Where the kernels of csrc/cuda run: the device of a tensor, its current stream.
//
// With MLP_EXT_ON_HOST the kernels are those that run on the host (tests/simt), and CPU tensors
// stand for CUDA tensors: so the files of this folder are tested on machines without a GPU too.
#pragma once

#include <ATen/core/Tensor.h>

#include "../../cuda/cublaslt/lt_api.h"
#include "../../cuda/cuda_api.h"
#include "../../cuda/device_info.h"

#if !defined(MLP_EXT_ON_HOST)
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#endif

namespace mlp_ext {

#if defined(MLP_EXT_ON_HOST)

inline bool on_device(const at::Tensor& t) { return t.device().is_cpu(); }

// Makes the tensor's device the current one for its scope.
class DeviceScope {
 public:
  explicit DeviceScope(const at::Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
  cuda::DeviceInfo info() const { return cuda::kH100; }
  cuda::Library library() const { return {cuda::lt_functions(), nullptr}; }
};

inline void check_launch(cudaError_t error) {
  TORCH_CHECK(error == cudaSuccess, "a kernel could not be launched: error ", int(error));
}

inline bool is_stream_capturing() { return false; }

#else

inline bool on_device(const at::Tensor& t) { return t.device().is_cuda(); }

// Makes the tensor's device the current one for its scope.
class DeviceScope {
 public:
  explicit DeviceScope(const at::Tensor& t) : guard_(t.device()) {}
  cudaStream_t stream() const { return at::cuda::getCurrentCUDAStream().stream(); }
  cuda::DeviceInfo info() const {
    const cudaDeviceProp& device = *at::cuda::getCurrentDeviceProperties();
    return {10 * device.major + device.minor, device.multiProcessorCount,
            device.sharedMemPerBlockOptin};
  }
  // cuBLASLt with PyTorch's handle; empty where there is none to call.
  cuda::Library library() const {
    const cuda::LtFunctions* const functions = cuda::lt_functions();
    if (!functions) return {};
    return {functions, at::cuda::getCurrentCUDABlasLtHandle()};
  }

 private:
  c10::cuda::CUDAGuard guard_;
};

inline void check_launch(cudaError_t error) { C10_CUDA_CHECK(error); }

// Whether the current device's current stream is being captured into a CUDA graph.
inline bool is_stream_capturing() {
  return c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
}

#endif

}  // namespace mlp_ext
