// Cuts the matrix into tiles and parts, and launches.
#include "activation_backward.cuh"

namespace mlp_ext::cuda {

namespace {

constexpr int kThreads = 256;
// Blocks of the second launch are few and wait for memory.
constexpr int kThreadsOfPartials = 512;
constexpr int64_t kBlocksPerMultiprocessor = 4;
// Rows that one thread sums before the parts become more.
constexpr int64_t kMostRowsOfThread = 4096;

struct Cut {
  int lanes;
  int64_t tiles, parts, rows_per_part;
};

// n: the columns of a thread.
Cut cut_for(int64_t rows, int64_t columns, int n, const DeviceInfo& device) {
  Cut cut{};
  cut.lanes = lanes_for(columns, n);
  cut.tiles = divided_up(columns, int64_t{cut.lanes} * n);
  const int64_t height = kThreads / cut.lanes, group = height * kRowGroup;
  const int64_t wanted = divided_up(kBlocksPerMultiprocessor * device.multiprocessors, cut.tiles);
  const int64_t fewest = divided_up(rows, height * kMostRowsOfThread);
  const int64_t parts = std::min<int64_t>(std::max(wanted, fewest), 65535);
  cut.rows_per_part = std::max<int64_t>(1, divided_up(divided_up(rows, parts), group)) * group;
  cut.parts = std::max<int64_t>(1, divided_up(rows, cut.rows_per_part));
  return cut;
}

template <class T>
bool packs_all(const ActivationBackwardArgs<T>& p) {
  const auto fits = [&](const T* q, int64_t ld) { return packs_columns<T>(q, ld, p.columns); };
  return fits(p.dy, p.ld_dy) && (p.activation == Activation::none || fits(p.saved, p.ld_saved)) &&
         (!p.dz || fits(p.dz, p.ld_dz));
}

template <class T, int N>
cudaError_t launch_parts(ColumnSums<T, T>& p, const Cut& cut, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(cut.tiles), static_cast<unsigned>(cut.parts));
  p.rows_per_part = cut.rows_per_part, p.lanes = cut.lanes;
  const size_t shared = p.sum ? kThreads / 32 * cut.lanes * N * sizeof(ComputeType<T>) : 0;
  switch (p.args.activation) {
#define MLP_CASE(name, Functor, saves)                                                            \
  case Activation::name:                                                                          \
    return launch(activation_backward_kernel<Functor, T, T, N, kThreads>, grid, kThreads, shared, \
                  stream, p);
    MLP_FOR_EACH_ACTIVATION(MLP_CASE)
#undef MLP_CASE
  }
  return cudaErrorInvalidValue;
}

// The partials are a matrix of (parts, columns) whose column sums are wanted.
template <class T>
cudaError_t launch_partials(const ColumnSums<T, T>& p, int64_t parts, cudaStream_t stream) {
  using C = ComputeType<T>;
  ColumnSums<C, T> q{};
  q.args.rows = parts, q.args.columns = p.args.columns;
  q.args.dy = p.partials, q.args.ld_dy = p.args.columns;
  q.sum = p.sum;
  q.rows_per_part = parts;
  q.lanes = lanes_for(p.args.columns, 1);
  return launch(activation_backward_kernel<Identity, C, T, 1, kThreadsOfPartials>,
                dim3(static_cast<unsigned>(divided_up(p.args.columns, q.lanes))),
                kThreadsOfPartials, kThreadsOfPartials / 32 * q.lanes * sizeof(C), stream, q);
}

}  // namespace

template <class T>
size_t activation_backward_workspace(int64_t rows, int64_t columns, const DeviceInfo& device) {
  if (rows <= 0 || columns <= 0) return 0;
  // Whichever kernel the pointers allow.
  const int64_t parts = std::max(cut_for(rows, columns, 1, device).parts,
                                 cut_for(rows, columns, kColumns<T>, device).parts);
  return parts > 1 ? static_cast<size_t>(parts * columns) * sizeof(ComputeType<T>) : 0;
}

template <class T>
cudaError_t activation_backward(const ActivationBackwardArgs<T>& args, void* workspace,
                                const DeviceInfo& device, cudaStream_t stream) {
  if (args.columns <= 0 || (!args.dz && !args.sum) || (args.rows <= 0 && !args.sum)) {
    return cudaSuccess;
  }
  ColumnSums<T, T> p{};
  p.args = args;
  p.sum = args.sum;
  p.partials = static_cast<ComputeType<T>*>(workspace);
  const bool packed = packs_all(args);
  const Cut cut = cut_for(args.rows, args.columns, packed ? kColumns<T> : 1, device);
  const cudaError_t error =
      packed ? launch_parts<T, kColumns<T>>(p, cut, stream) : launch_parts<T, 1>(p, cut, stream);
  if (error != cudaSuccess || !args.sum || cut.parts == 1) return error;
  return launch_partials(p, cut.parts, stream);
}

#define MLP_INSTANCE(T)                                                                  \
  template size_t activation_backward_workspace<T>(int64_t, int64_t, const DeviceInfo&); \
  template cudaError_t activation_backward<T>(const ActivationBackwardArgs<T>&, void*,   \
                                              const DeviceInfo&, cudaStream_t);
MLP_INSTANCE(float)
MLP_INSTANCE(double)
MLP_INSTANCE(BFloat16)
MLP_INSTANCE(Float16)
#undef MLP_INSTANCE

}  // namespace mlp_ext::cuda
