#include "relu_mask.cuh"

#include <algorithm>

namespace mlp_ext::cuda {

namespace {

constexpr int kThreadsOfMask = 256;
constexpr int64_t kMaskRowsOfThread = 4;

template <class T, int N>
cudaError_t launch_mask(const ReluMaskArgs<T>& p, cudaStream_t stream) {
  const int64_t bytes = p.ld_mask / 8;
  const int lanes = lanes_for(bytes, 1);
  const int64_t parts =
      std::min<int64_t>(65535, divided_up(p.rows, kThreadsOfMask / lanes * kMaskRowsOfThread));
  const dim3 grid(static_cast<unsigned>(divided_up(bytes, lanes)), static_cast<unsigned>(parts));
  return launch(relu_mask_kernel<T, N, kThreadsOfMask>, grid, kThreadsOfMask, 0, stream, p, lanes);
}

}  // namespace

template <class T>
cudaError_t relu_mask(const ReluMaskArgs<T>& args, cudaStream_t stream) {
  if (args.rows <= 0 || args.ld_mask <= 0) return cudaSuccess;
  constexpr int kLoad = kPack<T> < 8 ? kPack<T> : 8;
  const bool packed = args.columns % kLoad == 0 && packs<T>(args.y, args.ld_y);
  return packed ? launch_mask<T, kLoad>(args, stream) : launch_mask<T, 1>(args, stream);
}

template cudaError_t relu_mask<float>(const ReluMaskArgs<float>&, cudaStream_t);
template cudaError_t relu_mask<double>(const ReluMaskArgs<double>&, cudaStream_t);
template cudaError_t relu_mask<BFloat16>(const ReluMaskArgs<BFloat16>&, cudaStream_t);
template cudaError_t relu_mask<Float16>(const ReluMaskArgs<Float16>&, cudaStream_t);

}  // namespace mlp_ext::cuda
