// The options of torch.optim's parameter groups, as the kernels take them.
#pragma once

#include <cmath>

#include "../cpu/kernel_table.h"
#include "param_group.h"

namespace mlp_ext {

inline cpu::SgdArgs sgd_options(const Group& group) {
  static PyObject* const kLr = interned("lr");
  static PyObject* const kMomentum = interned("momentum");
  static PyObject* const kDampening = interned("dampening");
  static PyObject* const kWeightDecay = interned("weight_decay");
  static PyObject* const kNesterov = interned("nesterov");
  static PyObject* const kMaximize = interned("maximize");
  cpu::SgdArgs args{};
  args.grad_scale = 1;
  args.lr = group.number(kLr);
  args.momentum = group.number(kMomentum);
  args.dampening = group.number(kDampening);
  args.weight_decay = group.number(kWeightDecay);
  args.nesterov = group.flag(kNesterov);
  args.maximize = group.flag(kMaximize);
  return args;
}

// Of Adam and AdamW; what depends on the step count is filled in by set_step.
inline cpu::AdamArgs adam_options(const Group& group) {
  static PyObject* const kLr = interned("lr");
  static PyObject* const kBetas = interned("betas");
  static PyObject* const kEps = interned("eps");
  static PyObject* const kWeightDecay = interned("weight_decay");
  static PyObject* const kAmsgrad = interned("amsgrad");
  static PyObject* const kMaximize = interned("maximize");
  static PyObject* const kDecoupled = interned("decoupled_weight_decay");
  const auto betas =
      pybind11::reinterpret_borrow<pybind11::object>(group.get(kBetas)).cast<pybind11::sequence>();
  cpu::AdamArgs args{};
  args.grad_scale = 1;
  args.lr = group.number(kLr);
  args.beta1 = Group::as_double(pybind11::object(betas[0]).ptr());
  args.beta2 = Group::as_double(pybind11::object(betas[1]).ptr());
  args.eps = group.number(kEps);
  args.weight_decay = group.number(kWeightDecay);
  args.amsgrad = group.flag(kAmsgrad);
  args.maximize = group.flag(kMaximize);
  args.decoupled = group.flag_or_false(kDecoupled);
  return args;
}

// `count`: the number of this step, from 1.
inline void set_step(cpu::AdamArgs& args, double count) {
  args.step_size = args.lr / (1 - std::pow(args.beta1, count));
  args.bias_correction2_sqrt = std::sqrt(1 - std::pow(args.beta2, count));
}

// Options under which torch's own step has to run.
inline bool asks_for_torch(const Group& group) {
  static PyObject* const kCapturable = interned("capturable");
  static PyObject* const kDifferentiable = interned("differentiable");
  return group.flag_or_false(kDifferentiable) || group.flag_or_false(kCapturable);
}

}  // namespace mlp_ext
