// One optimizer step as a list of items, a parameter each, and the run over all their elements.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <vector>

#include "../cpu/dispatch.h"
#include "../step/partition.h"
#include "extents.h"
#include "optimizer_state.h"
#include "parallel.h"

namespace mlp_ext {

// What a step came to. Unless it is kDone, nothing has been changed; nor has it if the step throws,
// except that of several launches on CUDA those before the one that failed have updated their
// parameters and states, and no counter on the CPU.
enum class StepResult : int {
  kDone = 0,
  kMissingState = 1,  // a parameter with a gradient has no state yet
  kUnsupported = 2,   // something the kernels do not take: torch's own step is to run
};

// Where a tensor's elements are, and what keeps them there while another thread, which has the GIL
// during the step, says `p.data = ...`.
struct Elements {
  void* data = nullptr;
  c10::Storage storage;
};

// Null for an undefined tensor. May throw: what was lazily cloned gets memory of its own.
inline Elements written(const at::Tensor& t) {
  if (!t.defined()) return {};
  return {t.mutable_data_ptr(), t.storage()};
}
// Only to be read.
inline Elements read(const at::Tensor& t) {
  return {const_cast<void*>(t.const_data_ptr()), t.storage()};
}

// One parameter with its gradient.
struct Item : ParameterState {
  at::Tensor param, grad;
  at::Tensor master;  // undefined for none
  int64_t numel = 0;
  pybind11::object own;  // its entry of the optimizer's state; null where nobody has looked
  PyObject* key = nullptr;
  int group = 0;  // the number of its group

  // Of the tensors above, from prepare() on; nothing reads the tensors' addresses after it.
  struct Places {
    Elements param, grad, master, states[kMostStates];
  } at;
};

// A gradient laid out as its parameter: strides of autograd's choosing are copied, never assumed.
inline at::Tensor aligned_grad(const at::Tensor& grad, const at::Tensor& param) {
  at::Tensor aligned = at::empty_like(param);
  aligned.copy_(grad);
  return aligned;
}

enum class Eligible { kYes, kSkip, kNo };

// Fills in param and grad of one entry of group["params"]. Throws as check_memory() does.
inline Eligible take_parameter(PyObject* object, Item& item) {
  if (!is_tensor(object)) return Eligible::kNo;
  const at::Tensor& param = tensor_of(object);
  const at::Tensor& grad = param.grad();
  if (!grad.defined()) return Eligible::kSkip;
  if (!is_plain(param) || !has_kernel_type(grad) || grad.is_neg() || grad._is_zerotensor() ||
      grad.unsafeGetTensorImpl()->key_set().has(c10::DispatchKey::Python) ||
      grad.scalar_type() != param.scalar_type() || grad.sizes() != param.sizes() ||
      grad.device() != param.device()) {  // after `param.data = ...`
    return Eligible::kNo;
  }
  check_memory(param, "a parameter");
  check_memory(grad, "a gradient");
  item.key = object;
  item.param = param;
  item.grad = grad;
  item.numel = param.numel();
  return Eligible::kYes;
}

// Runs kernel(item, first element, count) over the elements of all items, cut evenly among threads.
// One element costs about half a nanosecond of one core.
template <class Kernel>
void for_all_elements(const std::vector<Item>& items, const Kernel& kernel) {
  int64_t total = 0;
  for (const auto& item : items) total += item.numel;
  const int threads = threads_for(total / 2);
  const auto length = [](const Item& item) { return item.numel; };
  parallel(threads,
           [&](int task) { step::for_share_of_elements(items, length, task, threads, kernel); });
}

template <class S>
void run_item(const cpu::OptimizerKernels<S>& kernels, const Item& item, int64_t first, int64_t n) {
  S* states[kMostStates];
  for (int i = 0; i < kMostStates; ++i) states[i] = static_cast<S*>(item.at.states[i].data);
  step::run_rule(kernels, item.args, static_cast<S*>(item.at.param.data),
                 static_cast<const S*>(item.at.grad.data), states, first, n);
}

// The same for a 16-bit parameter with a master weight.
template <class S>
void run_item(const cpu::MasterKernels<S>& kernels, const Item& item, int64_t first, int64_t n) {
  const auto from = [first](const Elements& elements) {
    return elements.data ? static_cast<float*>(elements.data) + first : nullptr;
  };
  float* states[kMostStates];
  for (int i = 0; i < kMostStates; ++i) states[i] = from(item.at.states[i]);
  std::visit(
      [&](const auto& args) {
        kernels.run(args, static_cast<S*>(item.at.param.data) + first,
                    static_cast<const S*>(item.at.grad.data) + first, states, from(item.at.master),
                    n);
      },
      item.args);
}

// Whether memory that the step writes to is written, or read, for another parameter too: torch's
// step takes one parameter after the other, and counts a `step` that two have twice.
inline bool shares_states(const std::vector<Item>& items) {
  constexpr size_t kMost = 2 + kMostStates + 2;  // param, master, states, step, mu_product
  Begins begins(items.size() * kMost);
  const auto counter = [](const at::Tensor& t) {
    return t.defined() ? t.const_data_ptr() : nullptr;
  };
  for (const Item& item : items) {
    bool apart = begins.add(item.at.param.data) && begins.add(item.at.master.data) &&
                 begins.add(counter(item.step)) && begins.add(counter(item.mu_product));
    for (const Elements& state : item.at.states) apart = apart && begins.add(state.data);
    if (!apart) return true;
  }
  return std::any_of(items.begin(), items.end(),
                     [&](const Item& item) { return begins.has(item.at.grad.data); });
}

// What can still refuse the step, or fail for want of memory: to be called before anything changes.
// False if two parameters share memory (one is listed twice, or is a view of the other), which two
// threads would update at the same time, or share a state. `zeroed`: it may be that the kernels
// write no first state. `writes_grads`: the gradients are written to.
inline bool prepare(std::vector<Item>& items, bool zeroed, bool writes_grads) {
  Extents extents;
  // All of this before anything that a mode might run Python code in.
  for (auto& item : items) {
    item.at = {written(item.param),
               writes_grads ? written(item.grad) : read(item.grad),
               written(item.master),
               {written(item.states[0]), written(item.states[1]), written(item.states[2])}};
    extents.add(item.param);
  }
  for (auto& item : items) {
    if (item.grad.strides() != item.param.strides()) {
      item.grad = aligned_grad(item.grad, item.param);
      item.at.grad = read(item.grad);
    }
    if (!item.makes_first_state) continue;
    const at::Tensor& like = item.master.defined() ? item.master : item.param;
    item.states[0] = (zeroed ? at::zeros_like(like) : at::empty_like(like)).detach();
    item.at.states[0] = written(item.states[0]);
  }
  static_assert(kMostStates == 3);
  return !extents.overlap() && !shares_states(items);
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
