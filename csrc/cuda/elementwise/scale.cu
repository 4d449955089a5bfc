#include "scale.cuh"

namespace mlp_ext::cuda {

template <class T>
cudaError_t scale(T* x, int64_t n, const T* factor, cudaStream_t stream) {
  if (n <= 0) return cudaSuccess;
  // Elements up to the first address that is aligned to 16 bytes.
  const auto past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(x) % 16 / sizeof(T));
  const int64_t head = past == 0 ? 0 : std::min<int64_t>(n, kPack<T> - past);
  // A few thousand threads of the smallest GPU to the largest; all end at once where factor is 1.
  const int64_t blocks = std::min<int64_t>(1024, divided_up(n, kScaleThreads * kPack<T>));
  return launch(scale_kernel<T>, dim3(static_cast<unsigned>(blocks)), kScaleThreads, 0, stream, x,
                n, head, factor);
}

template cudaError_t scale<float>(float*, int64_t, const float*, cudaStream_t);
template cudaError_t scale<double>(double*, int64_t, const double*, cudaStream_t);
template cudaError_t scale<BFloat16>(BFloat16*, int64_t, const BFloat16*, cudaStream_t);
template cudaError_t scale<Float16>(Float16*, int64_t, const Float16*, cudaStream_t);

}  // namespace mlp_ext::cuda
