// Launchers of clip_norm.cuh.
#include "clip_norm.h"

#include "clip_norm.cuh"

namespace mlp_ext::cuda {

namespace {

// As long as it takes for about four blocks a multiprocessor in all: every block of the second
// launch reads the partial sums of all.
int64_t chunk_for(const FlatTensor* tensors, int64_t count, const DeviceInfo& device) {
  return even_chunk(total_elements(tensors, count), device.multiprocessors);
}

// Calls launch_list(list, blocks) for each list of tensors that has elements.
template <class Launch>
cudaError_t for_each_list(TensorList<FlatTensor>& list, const FlatTensor* tensors, int64_t count,
                          int64_t chunk, const Launch& launch_list) {
  for (int64_t first = 0; first < count; first += kMostTensors) {
    const int blocks =
        fill(list, tensors + first, std::min<int64_t>(kMostTensors, count - first), chunk);
    if (blocks == 0) continue;
    const cudaError_t error = launch_list(blocks);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

int64_t blocks_of_all(const FlatTensor* tensors, int64_t count, int64_t chunk) {
  int64_t blocks = 0;
  for (int64_t i = 0; i < count; ++i) blocks += blocks_of(tensors[i].n, chunk);
  return blocks;
}

constexpr size_t kShared = kWarps * sizeof(double);

template <class T>
cudaError_t launch_sums(const FlatTensor* tensors, int64_t count, int64_t chunk, double* partial,
                        cudaStream_t stream) {
  SquaresParameters p{{}, partial};
  static_assert(sizeof p <= kMostParameterBytes);
  return for_each_list(p.list, tensors, count, chunk, [&](int blocks) {
    const cudaError_t error =
        launch(sum_of_squares<T>, dim3(blocks), dim3(kMultiTensorThreads), kShared, stream, p);
    p.partial += blocks;
    return error;
  });
}

template <class T>
cudaError_t launch_scaling(const FlatTensor* tensors, int64_t count, int64_t chunk,
                           const double* partial, double max_norm, T* norm, cudaStream_t stream) {
  ScaleParameters<T> p{{},
                       partial,
                       static_cast<int>(blocks_of_all(tensors, count, chunk)),
                       static_cast<T>(max_norm),
                       norm};
  static_assert(sizeof p <= kMostParameterBytes);
  return for_each_list(p.list, tensors, count, chunk, [&](int blocks) {
    return launch(scale_to_norm<T>, dim3(blocks), dim3(kMultiTensorThreads), kShared, stream, p);
  });
}

}  // namespace

size_t clip_norm_workspace(const FlatTensor* tensors, int64_t count, const DeviceInfo& device) {
  return sizeof(double) * blocks_of_all(tensors, count, chunk_for(tensors, count, device));
}

template <class T>
cudaError_t clip_norm(const FlatTensor* tensors, int64_t count, double max_norm, T* norm,
                      void* workspace, const DeviceInfo& device, cudaStream_t stream) {
  const int64_t chunk = chunk_for(tensors, count, device);
  double* const partial = static_cast<double*>(workspace);
  const cudaError_t error = launch_sums<T>(tensors, count, chunk, partial, stream);
  if (error != cudaSuccess) return error;
  return launch_scaling(tensors, count, chunk, partial, max_norm, norm, stream);
}

template cudaError_t clip_norm<float>(const FlatTensor*, int64_t, double, float*, void*,
                                      const DeviceInfo&, cudaStream_t);
template cudaError_t clip_norm<double>(const FlatTensor*, int64_t, double, double*, void*,
                                       const DeviceInfo&, cudaStream_t);

}  // namespace mlp_ext::cuda
