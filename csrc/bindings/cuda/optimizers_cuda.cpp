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
  // On the batch's device, or undefined.
  Tensor grad_scale, found_inf, rate, workspace;

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
    if (batch == batches.end()) batch = batches.insert(batch, {&item, {}, {}, {}, {}, {}, {}});
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

// All that a batch's launch needs memory for.
void prepare(Batch& batch, const Tensor& lr, const Scaling& scaling) {
  const at::Device device = batch.first->param.device();
  const DeviceScope scope(batch.first->param);
  batch.grad_scale = moved(scaling.grad_scale, device);
  batch.found_inf = moved(scaling.found_inf, device);
  batch.rate = moved(lr, device);
  for (const Tensor& scalar : {batch.grad_scale, batch.found_inf, batch.rate}) {
    if (scalar.defined()) check_memory(scalar, "a scalar of the step");
  }
  if (batch.rate.defined() || !batch.counters.empty()) {
    const size_t bytes = cuda::optimizer_workspace(static_cast<int64_t>(batch.tensors.size()));
    batch.workspace = at::empty({static_cast<int64_t>(bytes)},
                                at::TensorOptions().dtype(at::kByte).device(device));
  }
}

template <class S, class W>
void launch(const Batch& batch) {
  const DeviceScope scope(batch.first->param);
  const cuda::StepScaling scalars{float_of(batch.grad_scale), float_of(batch.found_inf)};
  const auto count = static_cast<int64_t>(batch.tensors.size());
  std::visit(
      [&](const auto& args) {
        using Args = std::decay_t<decltype(args)>;
        if (!batch.workspace.defined()) {
          check_launch(cuda::optimizer_step<Args, S, W>(args, batch.tensors.data(), count, scalars,
                                                        scope.info(), scope.stream()));
          return;
        }
        cuda::DeviceScalar rate;
        if (batch.rate.defined()) {
          rate = {batch.rate.const_data_ptr(), batch.rate.scalar_type() == at::kDouble};
        }
        check_launch(cuda::optimizer_step_on_device<Args, S, W>(
            args, batch.tensors.data(), batch.counters.empty() ? nullptr : batch.counters.data(),
            count, rate, scalars, batch.workspace.mutable_data_ptr(), scope.info(),
            scope.stream()));
      },
      batch.first->args);
}

void launch(const Batch& batch) {
  const bool has_master = batch.first->master.defined();
  switch (batch.first->param.scalar_type()) {
    case at::kFloat:
      return launch<float, float>(batch);
    case at::kDouble:
      return launch<double, double>(batch);
    case at::kBFloat16:
      if (has_master) return launch<BFloat16, float>(batch);
      return launch<BFloat16, BFloat16>(batch);
    default:
      if (has_master) return launch<Float16, float>(batch);
      return launch<Float16, Float16>(batch);
  }
}

}  // namespace

bool is_capturing() { return is_stream_capturing(); }

void update_cuda(const std::vector<Item>& items, const std::vector<Tensor>& lr,
                 const Scaling& scaling) {
  std::vector<Batch> batches = batches_of(items);
  // Before the first launch: what is short of memory has changed nothing.
  for (Batch& batch : batches) prepare(batch, lr[batch.first->group], scaling);
  for (const Batch& batch : batches) launch(batch);
  for (const Item& item : items) {
    bump_versions(item);
    if (scaling.grad_scale.defined()) item.grad.unsafeGetTensorImpl()->bump_version();
  }
}

}  // namespace mlp_ext
