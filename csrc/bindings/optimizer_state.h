// One parameter's part of a step: its options and its state, read and checked without a change to
// either, and counted up once the step can no longer fail.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>

#include "eligibility.h"
#include "memory.h"
#include "optimizer_rules.h"

namespace mlp_ext {

// A dense block of memory of a type that the kernels know, without a mode or subclass in the way.
inline bool is_plain(const at::Tensor& t) {
  return has_kernel_type(t) && t.is_non_overlapping_and_dense() && !t.is_inference() &&
         !t.is_neg() && !t._is_zerotensor() &&
         !t.unsafeGetTensorImpl()->key_set().has(c10::DispatchKey::Python);
}

// Throws RuntimeError for a tensor whose memory has been freed or cut by storage.resize_().
inline void check_memory(const at::Tensor& t, const char* what) {
  TORCH_CHECK(has_its_memory(t), "the memory of ", what, " of shape ", t.sizes(),
              " has been freed or cut: its storage has ", t.storage().nbytes(), " bytes");
}

// Throws RuntimeError for what torch's step would raise for after it has updated the parameters
// before it: a state of another shape (from the checkpoint of another model, say), on another
// device, or of another dtype where torch does not promote. Returns whether state and parameter lie
// in memory alike.
inline bool fits(const at::Tensor& state, const StateName& key, const at::Tensor& param) {
  const bool same_type = state.scalar_type() == param.scalar_type();
  const bool same_device = state.device() == param.device();
  TORCH_CHECK(state.sizes() == param.sizes() && (same_device || key.shares == Shares::kShape) &&
                  (same_type || key.shares != Shares::kDeviceAndDtype),
              "optimizer state '", key.name, "' is ", state.scalar_type(), " of shape ",
              state.sizes(), " on ", state.device(), ", but its parameter is ", param.scalar_type(),
              " of shape ", param.sizes(), " on ", param.device());
  check_memory(state, key.name);
  return same_type && same_device && is_plain(state) && state.strides() == param.strides();
}

// A counter is a scalar tensor, float32, or float64 where that is torch's default dtype.
inline bool is_counter(const at::Tensor& t, const at::Device& device) {
  return t.dim() == 0 && t.device() == device && is_plain(t) &&
         (t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble) && has_its_memory(t);
}
inline double counter_value(const at::Tensor& t) {
  return t.scalar_type() == at::kFloat ? *t.const_data_ptr<float>() : *t.const_data_ptr<double>();
}
inline void set_counter(const at::Tensor& t, double value) {
  if (t.scalar_type() == at::kFloat) {
    *t.mutable_data_ptr<float>() = static_cast<float>(value);
  } else {
    *t.mutable_data_ptr<double>() = value;
  }
  t.unsafeGetTensorImpl()->bump_version();
}

// The options of one group, read once a step.
class GroupOptions {
 public:
  // lr_tensor: see UpdateRule::options.
  GroupOptions(const UpdateRule& rule, const Group& group, at::Tensor* lr_tensor = nullptr)
      : rule(rule), args_(rule.options(group, lr_tensor)), strange_(rule.strange(args_)) {}

  bool uses(int state) const { return rule.uses(args_, state); }
  // Whether a parameter's state is to be looked up at all: its key is hashed in Python.
  bool needs_state() const { return rule.counts || uses(0); }

  // With what depends on the counters, which are worked out once for parameters that have the same.
  const step::AnyRuleArgs& at(Counters& counters) {
    if (!counters.same_as(before_)) {
      before_ = after_ = counters;
      rule.at_step(args_, after_);
      if (strange_ == nullptr) strange_ = at_odd_step() ? "step" : rule.strange(args_);
    }
    counters = after_;
    return args_;
  }
  const step::AnyRuleArgs& args() const { return args_; }

  // UpdateRule::strange() of the options, or at any of the counters so far; "step" for a count that
  // is no number of a step. Then torch's own step is to run, or the options are to be refused.
  const char* strange() const { return strange_; }

  const UpdateRule& rule;

 private:
  bool at_odd_step() const { return !(after_.step >= 1 && after_.step < 1e300); }

  step::AnyRuleArgs args_;
  const char* strange_;
  Counters before_{std::nan("")}, after_;  // nothing is the same as the first before_
};

struct ParameterState {
  at::Tensor states[kMostStates];  // in the kernel's order; undefined where not used
  at::Tensor step, mu_product;     // undefined where the rule has none
  Counters counters;
  step::AnyRuleArgs args;
  bool makes_first_state = false;  // states[0] is to be made by this step
  // Nobody has looked at step and mu_product, which are on CUDA: what depends on them is not in
  // args, and the kernels count.
  bool counts_itself = false;

  // Once the step is certain.
  void count() const {
    if (counts_itself) return;
    if (step.defined()) set_counter(step, counters.step);
    if (mu_product.defined()) set_counter(mu_product, counters.mu_product);
  }
};

enum class Found {
  kAll,
  kNoState,     // nothing is there yet
  kIncomplete,  // a tensor that the options call for is not
  kUnsuited,    // something is there that the kernels cannot take
};

// The names of the counters.
inline PyObject* step_key() {
  static PyObject* const key = interned("step");
  return key;
}
inline PyObject* mu_product_key() {
  static PyObject* const key = interned("mu_product");
  return key;
}

// Reads what `own`, the parameter's state (null: none), holds. cuda_counters: the counters are to
// be on the parameter's device, which is CUDA's. Throws as fits() does.
inline Found read_state(GroupOptions& options, PyObject* own, const at::Tensor& param,
                        ParameterState& result, bool cuda_counters = false) {
  const UpdateRule& rule = options.rule;
  const bool empty = own == nullptr || PyDict_Size(own) == 0;
  if (empty && !rule.makes_first_state) return Found::kNoState;
  for (int i = 0; i < kMostStates && rule.states[i].name; ++i) {
    if (!options.uses(i)) continue;
    const at::Tensor* state = own ? state_tensor(own, rule.state_key(i)) : nullptr;
    if (state == nullptr) {
      if (i > 0 || !rule.makes_first_state) return Found::kIncomplete;
      if (own && has_entry(own, rule.state_key(i))) return Found::kUnsuited;  // a number, say
      result.makes_first_state = true;
      continue;
    }
    if (!fits(*state, rule.states[i], param)) return Found::kUnsuited;
    result.states[i] = *state;
  }
  const at::Device counters_device = cuda_counters ? param.device() : at::Device(at::kCPU);
  result.counts_itself = cuda_counters && rule.counts;
  if (rule.counts) {
    const at::Tensor* step = state_tensor(own, step_key());
    if (step == nullptr) return Found::kIncomplete;
    if (!is_counter(*step, counters_device)) return Found::kUnsuited;
    result.step = *step;
    if (!cuda_counters) result.counters.step = counter_value(*step) + 1;
  }
  if (rule.multiplies) {
    const at::Tensor* product = state_tensor(own, mu_product_key());
    if (product == nullptr) return Found::kIncomplete;
    if (!is_counter(*product, counters_device)) return Found::kUnsuited;
    result.mu_product = *product;
    if (!cuda_counters) result.counters.mu_product = counter_value(*product);
    result.counters.mu_in_float = product->scalar_type() == at::kFloat;
  }
  result.args = rule.counts && !cuda_counters ? options.at(result.counters) : options.args();
  if (result.makes_first_state) {
    if (auto* sgd = std::get_if<SgdArgs>(&result.args)) sgd->first = true;
  }
  return Found::kAll;
}

// Of what a kernel has written to, past autograd.
inline void bump_versions(const at::Tensor& param, const ParameterState& state) {
  param.unsafeGetTensorImpl()->bump_version();
  for (const at::Tensor& t : state.states) {
    if (t.defined()) t.unsafeGetTensorImpl()->bump_version();
  }
  if (!state.counts_itself) return;
  for (const at::Tensor& t : {state.step, state.mu_product}) {
    if (t.defined()) t.unsafeGetTensorImpl()->bump_version();
  }
}

}  // namespace mlp_ext
