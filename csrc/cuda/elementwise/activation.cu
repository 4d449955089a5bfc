#include "activation.cuh"

namespace mlp_ext::cuda {

namespace {

constexpr int kThreadsOfActivation = 256;
constexpr int64_t kRowsOfThread = 8;

template <class T, int N>
cudaError_t launch_activation(const ActivationArgs<T>& p, cudaStream_t stream) {
  const int lanes = lanes_for(p.columns, N);
  const int64_t tiles = divided_up(p.columns, int64_t{lanes} * N);
  const int64_t parts =
      std::min<int64_t>(65535, divided_up(p.rows, kThreadsOfActivation / lanes * kRowsOfThread));
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(parts));
  switch (p.activation) {
#define MLP_CASE(name, Functor, saves)                                          \
  case Activation::name:                                                        \
    return launch(activation_kernel<Functor, T, N, kThreadsOfActivation>, grid, \
                  kThreadsOfActivation, 0, stream, p, lanes);
    MLP_FOR_EACH_ACTIVATION(MLP_CASE)
#undef MLP_CASE
  }
  return cudaErrorInvalidValue;
}

}  // namespace

template <class T>
cudaError_t activation(const ActivationArgs<T>& args, cudaStream_t stream) {
  if (args.rows <= 0 || args.columns <= 0) return cudaSuccess;
  const auto fits = [&](const T* p, int64_t ld) { return packs_columns<T>(p, ld, args.columns); };
  const bool packed =
      fits(args.x, args.ld_x) && fits(args.y, args.ld_y) && (!args.z || fits(args.z, args.ld_z));
  return packed ? launch_activation<T, kColumns<T>>(args, stream)
                : launch_activation<T, 1>(args, stream);
}

template cudaError_t activation<float>(const ActivationArgs<float>&, cudaStream_t);
template cudaError_t activation<double>(const ActivationArgs<double>&, cudaStream_t);
template cudaError_t activation<BFloat16>(const ActivationArgs<BFloat16>&, cudaStream_t);
template cudaError_t activation<Float16>(const ActivationArgs<Float16>&, cudaStream_t);

}  // namespace mlp_ext::cuda
