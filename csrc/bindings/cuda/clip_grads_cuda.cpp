// clip_grad_norm_ by the kernels of csrc/cuda/optimizers/clip_norm.h.
#include "../../cuda/optimizers/clip_norm.h"

#include <ATen/ops/empty.h>

#include "../optimizer_cuda.h"
#include "device.h"

namespace mlp_ext {

using at::Tensor;

namespace {

template <class T>
Tensor clip(const std::vector<Tensor>& grads, double max_norm) {
  std::vector<cuda::FlatTensor> flat;
  for (const Tensor& grad : grads) flat.push_back({grad.mutable_data_ptr(), grad.numel()});
  const auto count = static_cast<int64_t>(flat.size());
  const auto options = grads.front().options().requires_grad(false);
  const DeviceScope scope(grads.front());
  const auto bytes = cuda::clip_norm_workspace(flat.data(), count, scope.info());
  const Tensor norm = at::empty({}, options);
  const Tensor workspace = at::empty({static_cast<int64_t>(bytes)}, options.dtype(at::kByte));
  check_launch(cuda::clip_norm<T>(flat.data(), count, max_norm, norm.mutable_data_ptr<T>(),
                                  workspace.mutable_data_ptr(), scope.info(), scope.stream()));
  return norm;
}

}  // namespace

Tensor clip_cuda(const std::vector<Tensor>& grads, double max_norm) {
  return grads.front().scalar_type() == at::kFloat ? clip<float>(grads, max_norm)
                                                   : clip<double>(grads, max_norm);
}

}  // namespace mlp_ext
