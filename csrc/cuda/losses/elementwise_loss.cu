#include "elementwise_loss.cuh"

namespace mlp_ext::cuda {

namespace {

constexpr int64_t kBlocksPerMultiprocessor = 8;
constexpr size_t kSharedOfLoss = kLossThreads / 32 * sizeof(double);

int64_t most_blocks_of_loss(const DeviceInfo& device) {
  return kBlocksPerMultiprocessor * device.multiprocessors;
}

template <class T>
bool packs_all(const ElementwiseLossArgs<T>& p) {
  const auto fits = [](const void* q) { return packs<T>(q, 0); };  // null fits
  return fits(p.input) && fits(p.target) && fits(p.weight) && fits(p.grad) &&
         (p.reduction != Reduction::none || fits(p.loss));
}

template <class T>
cudaError_t launch_weights(ElementwiseLossLaunch<T>& p, void* workspace, const DeviceInfo& device,
                           cudaStream_t stream) {
  p.workspace = static_cast<LossWorkspace*>(workspace);
  int64_t blocks = 1;
  if (p.args.reduction == Reduction::mean && p.args.mean_by_weight) {
    p.weights.parts = p.workspace->parts() + most_blocks_of_loss(device);
    blocks = std::min<int64_t>(kMostWeightParts, divided_up(p.args.n, 4 * kLossThreads));
    p.weights.count = static_cast<int>(blocks);
  }
  return launch(loss_weights_kernel<T>, dim3(static_cast<unsigned>(blocks)), kLossThreads,
                kSharedOfLoss, stream, p);
}

template <class T, int N>
cudaError_t launch_losses(const ElementwiseLossLaunch<T>& p, const DeviceInfo& device,
                          cudaStream_t stream) {
  const int64_t packs = std::max<int64_t>(1, p.args.n / N);
  const dim3 grid(static_cast<unsigned>(
      std::min(most_blocks_of_loss(device), divided_up(packs, kLossThreads))));
  switch (p.args.kind) {
#define MLP_CASE(name, Functor)                                                              \
  case LossKind::name:                                                                       \
    return launch(elementwise_loss_kernel<Functor, T, N>, grid, kLossThreads, kSharedOfLoss, \
                  stream, p);
    MLP_FOR_EACH_LOSS(MLP_CASE)
#undef MLP_CASE
  }
  return cudaErrorInvalidValue;
}

}  // namespace

size_t elementwise_loss_workspace(Reduction reduction, const DeviceInfo& device) {
  if (reduction == Reduction::none) return 0;
  return loss_workspace(most_blocks_of_loss(device) + kMostWeightParts);
}

template <class T>
cudaError_t elementwise_loss(const ElementwiseLossArgs<T>& args, void* workspace,
                             const DeviceInfo& device, cudaStream_t stream) {
  if (args.n <= 0) return cudaSuccess;
  ElementwiseLossLaunch<T> p{};
  p.args = args;
  if (args.reduction != Reduction::none) {
    const cudaError_t error = launch_weights(p, workspace, device, stream);
    if (error != cudaSuccess) return error;
  }
  return packs_all(args) ? launch_losses<T, kColumns<T>>(p, device, stream)
                         : launch_losses<T, 1>(p, device, stream);
}

#define MLP_INSTANCE(T)                                                          \
  template cudaError_t elementwise_loss<T>(const ElementwiseLossArgs<T>&, void*, \
                                           const DeviceInfo&, cudaStream_t);
MLP_INSTANCE(float)
MLP_INSTANCE(double)
MLP_INSTANCE(BFloat16)
MLP_INSTANCE(Float16)
#undef MLP_INSTANCE

}  // namespace mlp_ext::cuda
