// Optimizer steps by the kernels of csrc/cuda/optimizers/optimizers.h: the items of a step that
// share a group, counters, a type and a device are one call.
#include "../../cuda/optimizers/optimizers.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "../optimizer_cuda.h"
#include "device.h"

namespace mlp_ext {

using at::Tensor;

namespace {

struct Batch {
  const Item* first;
  std::vector<cuda::StepTensor> tensors;
  std::vector<cuda::StepCounters> counters;  // empty unless the kernels count

  bool takes(const Item& item) const {
    return item.group == first->group && item.param.device() == first->param.device() &&
           item.param.scalar_type() == first->param.scalar_type() &&
           item.master.defined() == first->master.defined() &&
           item.makes_first_state == first->makes_first_state &&
           item.counts_itself == first->counts_itself &&
           (item.counts_itself || item.counters.same_as(first->counters));
  }
};

cuda::StepTensor tensor_of(const Item& item) {
  cuda::StepTensor t{};
  t.param = item.at.param.data;
  t.grad = item.at.grad.data;
  for (int i = 0; i < kMostStates; ++i) t.states[i] = item.at.states[i].data;
  t.master = static_cast<float*>(item.at.master.data);
  t.n = item.numel;
  return t;
}

cuda::StepCounters counters_of(const Item& item) {
  cuda::StepCounters c{};
  c.step = item.step.mutable_data_ptr();
  c.step_in_double = item.step.scalar_type() == at::kDouble;
  if (item.mu_product.defined()) {
    c.mu_product = item.mu_product.mutable_data_ptr();
    c.mu_in_double = item.mu_product.scalar_type() == at::kDouble;
  }
  return c;
}

std::vector<Batch> batches_of(const std::vector<Item>& items) {
  std::vector<Batch> batches;
  for (const Item& item : items) {
    auto batch = std::find_if(batches.begin(), batches.end(),
                              [&item](const Batch& each) { return each.takes(item); });
    if (batch == batches.end()) batch = batches.insert(batch, {&item, {}, {}});
    batch->tensors.push_back(tensor_of(item));
    if (item.counts_itself) batch->counters.push_back(counters_of(item));
  }
  return batches;
}

// On the batch's device, or undefined as it was.
Tensor moved(const Tensor& scalar, const at::Device& device) {
  return scalar.defined() && scalar.device() != device ? scalar.to(device, /*non_blocking=*/true)
                                                       : scalar;
}
const float* float_of(const Tensor& scalar) {
  return scalar.defined() ? scalar.const_data_ptr<float>() : nullptr;
}

template <class S, class W>
void run(const Batch& batch, const Tensor& lr, const Scaling& scaling) {
  const DeviceScope scope(batch.first->param);
  const at::Device device = batch.first->param.device();
  const Tensor grad_scale = moved(scaling.grad_scale, device),
               found_inf = moved(scaling.found_inf, device), rate = moved(lr, device);
  const cuda::StepScaling scalars{float_of(grad_scale), float_of(found_inf)};
  const auto count = static_cast<int64_t>(batch.tensors.size());
  std::visit(
      [&](const auto& args) {
        using Args = std::decay_t<decltype(args)>;
        if (!rate.defined() && batch.counters.empty()) {
          check_launch(cuda::optimizer_step<Args, S, W>(args, batch.tensors.data(), count, scalars,
                                                        scope.info(), scope.stream()));
          return;
        }
        cuda::DeviceScalar of_rate;
        if (rate.defined()) {
          of_rate = {rate.const_data_ptr(), rate.scalar_type() == at::kDouble};
        }
        const Tensor workspace = at::empty({static_cast<int64_t>(cuda::optimizer_workspace(count))},
                                           at::TensorOptions().dtype(at::kByte).device(device));
        check_launch(cuda::optimizer_step_on_device<Args, S, W>(
            args, batch.tensors.data(), batch.counters.empty() ? nullptr : batch.counters.data(),
            count, of_rate, scalars, workspace.mutable_data_ptr(), scope.info(), scope.stream()));
      },
      batch.first->args);
}

void run(const Batch& batch, const Tensor& lr, const Scaling& scaling) {
  const bool has_master = batch.first->master.defined();
  switch (batch.first->param.scalar_type()) {
    case at::kFloat:
      return run<float, float>(batch, lr, scaling);
    case at::kDouble:
      return run<double, double>(batch, lr, scaling);
    case at::kBFloat16:
      if (has_master) return run<BFloat16, float>(batch, lr, scaling);
      return run<BFloat16, BFloat16>(batch, lr, scaling);
    default:
      if (has_master) return run<Float16, float>(batch, lr, scaling);
      return run<Float16, Float16>(batch, lr, scaling);
  }
}

}  // namespace

bool is_capturing() { return is_stream_capturing(); }

void update_cuda(const std::vector<Item>& items, const std::vector<Tensor>& lr,
                 const Scaling& scaling) {
  const bool writes_grads = scaling.grad_scale.defined();
  for (const Batch& batch : batches_of(items)) {
    run(batch, lr[batch.first->group], scaling);
  }
  for (const Item& item : items) {
    bump_versions(item);
    if (writes_grads) item.grad.unsafeGetTensorImpl()->bump_version();
  }
}

}  // namespace mlp_ext
