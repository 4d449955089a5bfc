// The only header that a kernel includes besides csrc/common: CUDA itself under nvcc; under an
// ordinary C++ compiler, with MLP_EXT_ON_HOST, a stand-in that runs every CUDA thread as a fiber
// (tests/simt/simt_host.h), so that kernels and launchers are tested on machines without a GPU.
//
// What kernels keep to, so that both work: no <<<>>> but launch(); no static __shared__ but
// shared_memory(); no asm but in ptx/; no cuda:: types; warp collectives with a full mask, or one
// that is the same for all lanes that it names.
#pragma once

#include "cuda_api.h"

#if defined(__CUDACC__)

namespace mlp_ext::cuda {

// The block's dynamic shared memory; carve it by hand.
template <class T>
__device__ __forceinline__ T* shared_memory() {
  extern __shared__ __align__(1024) unsigned char mlp_ext_shared_memory[];
  return reinterpret_cast<T*>(mlp_ext_shared_memory);
}

// kernel<<<grid, block, shared_bytes, stream>>>(args...).
template <class... Parameters, class... Args>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, const Args&... args) {
  constexpr size_t kWithoutAsking = 48 << 10;
  if (shared_bytes > kWithoutAsking) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(args)...);
  return cudaGetLastError();
}

}  // namespace mlp_ext::cuda

#endif

#define MLP_DEVICE __device__ __forceinline__
// A function that stays one: compiled once for all kernels of a file that end in it.
#if defined(__CUDACC__)
#define MLP_DEVICE_CALL __device__ __noinline__
#else
#define MLP_DEVICE_CALL inline
#endif
#define MLP_UNROLL _Pragma("unroll")

#define MLP_NAMESPACE_BEGIN \
  namespace mlp_ext::cuda { \
  namespace {
#define MLP_NAMESPACE_END \
  }                       \
  }
