// One optimizer step as a list of items, a parameter each, and the run over all their elements.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#include <vector>

#include "../cpu/dispatch.h"
#include "../step/partition.h"
#include "extents.h"
#include "optimizer_state.h"
#include "parallel.h"

namespace mlp_ext {

// What a step came to. Unless it is kDone, nothing has been changed.
enum class StepResult : int {
  kDone = 0,
  kMissingState = 1,  // a parameter with a gradient has no state yet
  kUnsupported = 2,   // something the kernels do not take: torch's own step is to run
};

// One parameter with its gradient.
struct Item : ParameterState {
  at::Tensor param, grad;
  at::Tensor master;  // undefined for none
  PyObject* key = nullptr;
  int group = 0;  // the number of its group
};

// A gradient laid out as its parameter: strides of autograd's choosing are copied, never assumed.
inline at::Tensor aligned_grad(const at::Tensor& grad, const at::Tensor& param) {
  if (grad.strides() == param.strides()) return grad;
  at::Tensor aligned = at::empty_like(param);
  aligned.copy_(grad);
  return aligned;
}

enum class Eligible { kYes, kSkip, kNo };

// Fills in param and grad of one entry of group["params"].
inline Eligible take_parameter(PyObject* object, Item& item) {
  if (!is_tensor(object)) return Eligible::kNo;
  const at::Tensor& param = tensor_of(object);
  const at::Tensor& grad = param.grad();
  if (!grad.defined()) return Eligible::kSkip;
  if (!is_plain(param) || !has_kernel_type(grad) || grad.is_neg() || grad._is_zerotensor() ||
      grad.unsafeGetTensorImpl()->key_set().has(c10::DispatchKey::Python) ||
      grad.scalar_type() != param.scalar_type() || grad.sizes() != param.sizes()) {
    return Eligible::kNo;
  }
  item.key = object;
  item.param = param;
  item.grad = grad;
  return Eligible::kYes;
}

// Runs kernel(item, first element, count) over the elements of all items, cut evenly among threads.
// One element costs about half a nanosecond of one core.
template <class Kernel>
void for_all_elements(const std::vector<Item>& items, const Kernel& kernel) {
  int64_t total = 0;
  for (const auto& item : items) total += item.param.numel();
  const int threads = threads_for(total / 2);
  const auto length = [](const Item& item) { return item.param.numel(); };
  parallel(threads,
           [&](int task) { step::for_share_of_elements(items, length, task, threads, kernel); });
}

template <class S>
void run_item(const cpu::OptimizerKernels<S>& kernels, const Item& item, int64_t first, int64_t n) {
  S* states[kMostStates];
  for (int i = 0; i < kMostStates; ++i) {
    const at::Tensor& state = item.states[i];
    states[i] = state.defined() ? static_cast<S*>(state.mutable_data_ptr()) : nullptr;
  }
  step::run_rule(kernels, item.args, static_cast<S*>(item.param.mutable_data_ptr()),
                 static_cast<const S*>(item.grad.const_data_ptr()), states, first, n);
}

// The same for a 16-bit parameter with a master weight.
template <class S>
void run_item(const cpu::MasterKernels<S>& kernels, const Item& item, int64_t first, int64_t n) {
  float* states[kMostStates];
  for (int i = 0; i < kMostStates; ++i) {
    const at::Tensor& state = item.states[i];
    states[i] = state.defined() ? state.mutable_data_ptr<float>() + first : nullptr;
  }
  std::visit(
      [&](const auto& args) {
        kernels.run(args, static_cast<S*>(item.param.mutable_data_ptr()) + first,
                    static_cast<const S*>(item.grad.const_data_ptr()) + first, states,
                    item.master.mutable_data_ptr<float>() + first, n);
      },
      item.args);
}

// What can still refuse the step, or fail for want of memory: to be called before anything changes.
// False if two parameters share memory (one is listed twice, or is a view of the other), which two
// threads would update at the same time.
inline bool prepare(std::vector<Item>& items) {
  Extents extents;
  for (auto& item : items) {
    item.grad = aligned_grad(item.grad, item.param);
    extents.add(item.param);
  }
  return !extents.overlap();
}

inline void bump_versions(const Item& item) {
  bump_versions(item.param, item);
  if (item.master.defined()) item.master.unsafeGetTensorImpl()->bump_version();
}

// Updates every item, which are on the CPU.
inline void update(const std::vector<Item>& items) {
  const cpu::KernelTable& table = cpu::kernels();
  for_all_elements(items, [&table](const Item& item, int64_t first, int64_t n) {
    switch (item.param.scalar_type()) {
      case at::kFloat:
        return run_item(table.optim_f32, item, first, n);
      case at::kDouble:
        return run_item(table.optim_f64, item, first, n);
      case at::kBFloat16:
        if (item.master.defined()) return run_item(table.master_bf16, item, first, n);
        return run_item(table.optim_bf16, item, first, n);
      default:
        if (item.master.defined()) return run_item(table.master_f16, item, first, n);
        return run_item(table.optim_f16, item, first, n);
    }
  });
  for (const Item& item : items) bump_versions(item);
}

}  // namespace mlp_ext
