// One optimizer step as a list of items, a parameter each, and the run over all their elements.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <vector>

#include "../cpu/dispatch.h"
#include "../step/partition.h"
#include "eligibility.h"
#include "parallel.h"
#include "param_group.h"

namespace mlp_ext {

// What a step came to. Unless it is kDone, nothing has been changed.
enum class StepResult : int {
  kDone = 0,
  kMissingState = 1,  // a parameter with a gradient has no state yet
  kUnsupported = 2,   // something the kernels do not take: torch's own step is to run
};

// A dense block of memory of a type that the kernels know, without a mode or subclass in the way.
inline bool is_plain(const at::Tensor& t) {
  return has_kernel_type(t) && t.is_non_overlapping_and_dense() && !t.is_inference() &&
         !t.is_neg() && !t._is_zerotensor() &&
         !t.unsafeGetTensorImpl()->key_set().has(c10::DispatchKey::Python);
}

// Throws RuntimeError for a state of another shape than its parameter (from the checkpoint of
// another model, say), and with `strict` also of another dtype or device, which torch's step would
// raise for after it has updated the parameters before it. Returns whether state and parameter lie
// in memory alike.
inline bool fits(const at::Tensor& state, const char* key, const at::Tensor& param, bool strict) {
  const bool same_kind =
      state.scalar_type() == param.scalar_type() && state.device() == param.device();
  TORCH_CHECK(state.sizes() == param.sizes() && (same_kind || !strict), "optimizer state '", key,
              "' is ", state.scalar_type(), " of shape ", state.sizes(), " on ", state.device(),
              ", but its parameter is ", param.scalar_type(), " of shape ", param.sizes(), " on ",
              param.device());
  return same_kind && is_plain(state) && state.strides() == param.strides();
}

// Adam's step count: a scalar tensor, float32, or float64 where that is torch's default dtype.
inline bool is_step_count(const at::Tensor* t) {
  return t && t->dim() == 0 && is_plain(*t) &&
         (t->scalar_type() == at::kFloat || t->scalar_type() == at::kDouble);
}
inline double step_count(const at::Tensor& t) {
  return t.scalar_type() == at::kFloat ? *t.const_data_ptr<float>() : *t.const_data_ptr<double>();
}
inline void add_to_count(const at::Tensor& step, int64_t steps = 1) {
  if (step.scalar_type() == at::kFloat) {
    *step.mutable_data_ptr<float>() += float(steps);
  } else {
    *step.mutable_data_ptr<double>() += double(steps);
  }
  step.unsafeGetTensorImpl()->bump_version();
}

// Of what a kernel has written to, past autograd. `T`: with fields param and states.
template <class T>
void bump_versions(const T& changed) {
  changed.param.unsafeGetTensorImpl()->bump_version();
  for (const at::Tensor& state : changed.states) {
    if (state.defined()) state.unsafeGetTensorImpl()->bump_version();
  }
}

template <class Args>
struct Item {
  at::Tensor param, grad;
  at::Tensor states[3];
  PyObject* key = nullptr;
  Args args;
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
template <class Args>
Eligible take_parameter(PyObject* object, Item<Args>& item) {
  if (!THPVariable_Check(object)) return Eligible::kNo;
  const at::Tensor& param = THPVariable_Unpack(object);
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
template <class Args, class Kernel>
void for_all_elements(const std::vector<Item<Args>>& items, const Kernel& kernel) {
  int64_t total = 0;
  for (const auto& item : items) total += item.param.numel();
  const int threads = threads_for(total / 2);
  const auto length = [](const Item<Args>& item) { return item.param.numel(); };
  parallel(threads,
           [&](int task) { step::for_share_of_elements(items, length, task, threads, kernel); });
}

template <class S>
S* at_element(const at::Tensor& t, int64_t first) {
  return t.defined() ? static_cast<S*>(t.mutable_data_ptr()) + first : nullptr;
}

template <class S>
void run_item(const cpu::OptimizerKernels<S>& k, const Item<cpu::SgdArgs>& item, int64_t first,
              int64_t n) {
  k.sgd(item.args, at_element<S>(item.param, first),
        static_cast<const S*>(item.grad.const_data_ptr()) + first,
        at_element<S>(item.states[0], first), n);
}

template <class S>
void run_item(const cpu::OptimizerKernels<S>& k, const Item<cpu::AdamArgs>& item, int64_t first,
              int64_t n) {
  k.adam(item.args, at_element<S>(item.param, first),
         static_cast<const S*>(item.grad.const_data_ptr()) + first,
         at_element<S>(item.states[0], first), at_element<S>(item.states[1], first),
         at_element<S>(item.states[2], first), n);
}

// What can still refuse the step, or fail for want of memory: to be called before anything changes.
// False if two parameters share memory (one is listed twice, or is a view of the other), which two
// threads would update at the same time.
template <class Args>
bool prepare(std::vector<Item<Args>>& items) {
  struct Extent {
    const char *begin, *end;
    bool operator<(const Extent& other) const { return begin < other.begin; }
  };
  c10::SmallVector<Extent, 64> extents;
  for (auto& item : items) {
    item.grad = aligned_grad(item.grad, item.param);
    if (item.param.numel() == 0) continue;
    const char* begin = static_cast<const char*>(item.param.const_data_ptr());
    extents.push_back({begin, begin + item.param.nbytes()});
  }
  std::sort(extents.begin(), extents.end());
  for (size_t i = 1; i < extents.size(); ++i) {
    if (extents[i].begin < extents[i - 1].end) return false;
  }
  return true;
}

// Updates every item, without the GIL.
template <class Args>
void update(const std::vector<Item<Args>>& items) {
  const pybind11::gil_scoped_release without_gil;
  const cpu::KernelTable& table = cpu::kernels();
  for_all_elements(items, [&table](const Item<Args>& item, int64_t first, int64_t n) {
    switch (item.param.scalar_type()) {
      case at::kFloat:
        return run_item(table.optim_f32, item, first, n);
      case at::kDouble:
        return run_item(table.optim_f64, item, first, n);
      case at::kBFloat16:
        return run_item(table.optim_bf16, item, first, n);
      default:
        return run_item(table.optim_f16, item, first, n);
    }
  });
  for (const auto& item : items) bump_versions(item);
}

template <class Step>
int result_of(const Step& step) {
  try {
    return static_cast<int>(step());
  } catch (const NotANumber&) {
    return static_cast<int>(StepResult::kUnsupported);
  }
}

}  // namespace mlp_ext
