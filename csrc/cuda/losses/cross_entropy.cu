// Which kernel takes the rows, and how many blocks.
#include "cross_entropy.cuh"

namespace mlp_ext::cuda {

namespace {

constexpr int64_t kMostInRegisters = 1024;
// Blocks of 256 threads that a multiprocessor has at once, about; more rows are met by looping.
constexpr int64_t kBlocksOfRows = 8, kBlocksOfBlocks = 4;

int64_t most_blocks(const DeviceInfo& device) { return kBlocksOfRows * device.multiprocessors; }

template <class T>
bool packs_all(const CrossEntropyArgs<T>& p) {
  const auto fits = [&](const void* q, int64_t ld) { return packs_columns<T>(q, ld, p.classes); };
  return fits(p.logits, p.ld_logits) && (!p.grad || fits(p.grad, p.ld_grad)) &&
         (!p.probabilities || fits(p.probabilities, p.ld_probabilities));
}

template <class T>
cudaError_t launch_weights(CrossEntropyLaunch<T>& p, void* workspace, const DeviceInfo& device,
                           cudaStream_t stream) {
  p.workspace = static_cast<LossWorkspace*>(workspace);
  int64_t blocks = 1;
  if (p.args.target && p.args.reduction == Reduction::mean) {
    p.weights.parts = p.workspace->parts() + most_blocks(device);
    blocks = std::min<int64_t>(kMostWeightParts,
                               divided_up(p.args.images * p.args.rows, 4 * kRowThreads));
    p.weights.count = static_cast<int>(blocks);
  }
  return launch(target_weights_kernel<T>, dim3(static_cast<unsigned>(blocks)), kRowThreads,
                kRowThreads / 32 * sizeof(double), stream, p);
}

template <class T, int PER, int N, bool PROBABILITIES>
cudaError_t launch_rows(CrossEntropyLaunch<T>& p, const DeviceInfo& device, cudaStream_t stream) {
  p.lanes = lanes_for(p.args.classes, PER);
  const int64_t blocks =
      std::min(most_blocks(device), divided_up(p.args.rows, kRowThreads / p.lanes));
  return launch(cross_entropy_rows_kernel<T, PER, N, PROBABILITIES>,
                dim3(static_cast<unsigned>(blocks)), kRowThreads, kRowThreads / 32 * sizeof(double),
                stream, p);
}

template <class T, int N, bool PROBABILITIES>
cudaError_t launch_contiguous(CrossEntropyLaunch<T>& p, const DeviceInfo& device,
                              cudaStream_t stream) {
  constexpr int kFewest = sizeof(T) == 2 ? 8 : 4;  // elements a lane: a pack
  const int64_t classes = p.args.classes;
  if (classes <= 32 * kFewest) return launch_rows<T, kFewest, N, PROBABILITIES>(p, device, stream);
  if (classes <= 256) return launch_rows<T, 8, N, PROBABILITIES>(p, device, stream);
  if (classes <= 512) return launch_rows<T, 16, N, PROBABILITIES>(p, device, stream);
  if (classes <= kMostInRegisters) {
    return launch_rows<T, 32, N, PROBABILITIES>(p, device, stream);
  }
  const int64_t blocks = std::min(p.args.rows, kBlocksOfBlocks * device.multiprocessors);
  constexpr size_t kShared = kBlockThreads / 32 * sizeof(double) +
                             (kBlockThreads / 32 + 1) * sizeof(RowSums<ComputeType<T>>);
  return launch(cross_entropy_block_kernel<T, N, PROBABILITIES>,
                dim3(static_cast<unsigned>(blocks)), kBlockThreads, kShared, stream, p);
}

template <class T, bool PROBABILITIES>
cudaError_t launch_all(CrossEntropyLaunch<T>& p, const DeviceInfo& device, cudaStream_t stream) {
  if (p.args.class_stride == 1) {
    return packs_all(p.args) ? launch_contiguous<T, kColumns<T>, PROBABILITIES>(p, device, stream)
                             : launch_contiguous<T, 1, PROBABILITIES>(p, device, stream);
  }
  const int64_t rows = p.args.images * p.args.rows;
  const int64_t blocks = std::min(most_blocks(device), divided_up(rows, kRowThreads));
  return launch(cross_entropy_side_by_side_kernel<T, PROBABILITIES>,
                dim3(static_cast<unsigned>(blocks)), kRowThreads, kRowThreads / 32 * sizeof(double),
                stream, p);
}

}  // namespace

size_t cross_entropy_workspace(Reduction reduction, const DeviceInfo& device) {
  if (reduction == Reduction::none) return 0;
  return loss_workspace(most_blocks(device) + kMostWeightParts);
}

template <class T>
cudaError_t cross_entropy(const CrossEntropyArgs<T>& args, void* workspace,
                          const DeviceInfo& device, cudaStream_t stream) {
  if (args.images <= 0 || args.rows <= 0 || args.classes <= 0) return cudaSuccess;
  CrossEntropyLaunch<T> p{};
  p.args = args;
  if (args.reduction != Reduction::none) {
    const cudaError_t error = launch_weights(p, workspace, device, stream);
    if (error != cudaSuccess) return error;
  }
  return args.target ? launch_all<T, false>(p, device, stream)
                     : launch_all<T, true>(p, device, stream);
}

#define MLP_INSTANCE(T)                                                                       \
  template cudaError_t cross_entropy<T>(const CrossEntropyArgs<T>&, void*, const DeviceInfo&, \
                                        cudaStream_t);
MLP_INSTANCE(float)
MLP_INSTANCE(double)
MLP_INSTANCE(BFloat16)
MLP_INSTANCE(Float16)
#undef MLP_INSTANCE

}  // namespace mlp_ext::cuda
