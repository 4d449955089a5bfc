#include "optimizer_rules.h"

#include "eligibility.h"

namespace mlp_ext {

namespace {

// The groups' keys, each made once.
struct Keys {
  PyObject *lr, *weight_decay, *maximize, *momentum, *dampening, *nesterov, *betas, *eps, *amsgrad,
      *decoupled_weight_decay, *lr_decay, *alpha, *centered, *momentum_decay, *capturable,
      *differentiable, *master_weights, *fused;

  Keys()
      : lr(interned("lr")),
        weight_decay(interned("weight_decay")),
        maximize(interned("maximize")),
        momentum(interned("momentum")),
        dampening(interned("dampening")),
        nesterov(interned("nesterov")),
        betas(interned("betas")),
        eps(interned("eps")),
        amsgrad(interned("amsgrad")),
        decoupled_weight_decay(interned("decoupled_weight_decay")),
        lr_decay(interned("lr_decay")),
        alpha(interned("alpha")),
        centered(interned("centered")),
        momentum_decay(interned("momentum_decay")),
        capturable(interned("capturable")),
        differentiable(interned("differentiable")),
        master_weights(interned("master_weights")),
        fused(interned("fused")) {}
};

const Keys& keys() {
  static const Keys the_keys;
  return the_keys;
}

template <class Args>
void read_betas(const Group& group, Args& args) {
  const auto betas = pybind11::reinterpret_borrow<pybind11::object>(group.get(keys().betas))
                         .cast<pybind11::sequence>();
  args.beta1 = Group::as_double(pybind11::object(betas[0]).ptr());
  args.beta2 = Group::as_double(pybind11::object(betas[1]).ptr());
}

// Of each rule: its own options; which of its states they call for.

void read(const Group& group, SgdArgs& args) {
  args.momentum = group.number(keys().momentum);
  args.dampening = group.number(keys().dampening);
  args.nesterov = group.flag(keys().nesterov);
}
bool uses(const SgdArgs& args, int) { return args.momentum != 0; }

void read(const Group& group, AdamArgs& args) {
  read_betas(group, args);
  args.eps = group.number(keys().eps);
  args.amsgrad = group.flag(keys().amsgrad);
  args.decoupled = group.flag_or_false(keys().decoupled_weight_decay);
}
bool uses(const AdamArgs& args, int i) { return i < 2 || args.amsgrad; }

void read(const Group& group, AdagradArgs& args) {
  args.lr_decay = group.number(keys().lr_decay);
  args.eps = group.number(keys().eps);
}
bool uses(const AdagradArgs&, int) { return true; }

void read(const Group& group, RMSpropArgs& args) {
  args.alpha = group.number(keys().alpha);
  args.eps = group.number(keys().eps);
  args.momentum = group.number(keys().momentum);
  args.centered = group.flag(keys().centered);
}
bool uses(const RMSpropArgs& args, int i) {
  return i == 0 || (i == 1 ? args.centered : args.momentum > 0);
}

void read(const Group& group, NAdamArgs& args) {
  read_betas(group, args);
  args.eps = group.number(keys().eps);
  args.momentum_decay = group.number(keys().momentum_decay);
  args.decoupled = group.flag_or_false(keys().decoupled_weight_decay);
}
bool uses(const NAdamArgs&, int) { return true; }

void read(const Group& group, RAdamArgs& args) {
  read_betas(group, args);
  args.eps = group.number(keys().eps);
  args.decoupled = group.flag_or_false(keys().decoupled_weight_decay);
}
bool uses(const RAdamArgs&, int) { return true; }

void read(const Group& group, AdamaxArgs& args) {
  read_betas(group, args);
  args.eps = group.number(keys().eps);
}
bool uses(const AdamaxArgs&, int) { return true; }

// One element of a type and on a device that the kernels of csrc/cuda read.
bool is_scalar_of_cuda(const at::Tensor& t) {
  return t.numel() == 1 && is_cuda_kernel_device(t.device()) && has_kernel_type(t) &&
         (t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble) && !t.is_neg();
}

template <class Args>
step::AnyRuleArgs options_of(const Group& group, at::Tensor* lr_tensor) {
  Args args;
  PyObject* const lr = group.get(keys().lr);
  if (lr_tensor && is_tensor(lr) && is_scalar_of_cuda(tensor_of(lr))) {
    *lr_tensor = tensor_of(lr);
  } else {
    args.lr = Group::as_double(lr);
  }
  args.weight_decay = group.number(keys().weight_decay);
  args.maximize = group.flag(keys().maximize);
  read(group, args);
  return args;
}

template <class Args>
bool uses_state(const step::AnyRuleArgs& args, int i) {
  return uses(*std::get_if<Args>(&args), i);
}

template <class Args>
void set_step(step::AnyRuleArgs& args, Counters& at) {
  at_step(*std::get_if<Args>(&args), at);
}

template <class Args>
constexpr UpdateRule describe(const char* name, StateName first, StateName second = {},
                              StateName third = {}) {
  constexpr bool kSgd = std::is_same_v<Args, SgdArgs>;
  return {name,
          {first, second, third},
          /*counts=*/!kSgd,
          /*multiplies=*/std::is_same_v<Args, NAdamArgs>,
          /*makes_first_state=*/kSgd,
          options_of<Args>,
          uses_state<Args>,
          set_step<Args>};
}

}  // namespace

// torch's lerp_ raises for two dtypes, its other operations promote.
constexpr Shares kAll = Shares::kDeviceAndDtype;
const UpdateRule kRules[kRuleCount] = {
    describe<SgdArgs>("sgd", {"momentum_buffer", Shares::kShape}),
    describe<AdamArgs>("adam", {"exp_avg", kAll}, {"exp_avg_sq"}, {"max_exp_avg_sq"}),
    describe<AdagradArgs>("adagrad", {"sum"}),
    describe<RMSpropArgs>("rmsprop", {"square_avg"}, {"grad_avg", kAll}, {"momentum_buffer"}),
    describe<NAdamArgs>("nadam", {"exp_avg", kAll}, {"exp_avg_sq"}),
    describe<RAdamArgs>("radam", {"exp_avg", kAll}, {"exp_avg_sq"}),
    describe<AdamaxArgs>("adamax", {"exp_avg", kAll}, {"exp_inf"}),
};

PyObject* UpdateRule::state_key(int i) const {
  struct StateKeys {
    PyObject* keys[kRuleCount][kMostStates] = {};
    StateKeys() {
      for (int r = 0; r < kRuleCount; ++r) {
        for (int s = 0; s < kMostStates; ++s) {
          const char* name = kRules[r].states[s].name;
          if (name) keys[r][s] = interned(name);
        }
      }
    }
  };
  static const StateKeys the_keys;
  return the_keys.keys[this - kRules][i];
}

const UpdateRule* rule_named(const std::string& name) {
  for (const UpdateRule& rule : kRules) {
    if (name == rule.name) return &rule;
  }
  return nullptr;
}

bool asks_for_torch(const Group& group) { return is_differentiable(group) || is_capturable(group); }
bool is_differentiable(const Group& group) { return group.flag_or_false(keys().differentiable); }
bool is_capturable(const Group& group) { return group.flag_or_false(keys().capturable); }
bool is_fused(const Group& group) { return group.flag_or_false(keys().fused); }
bool may_be_capturable(const Group& group) { return group.has(keys().capturable); }

bool has_masters(const Group& group) { return group.flag_or_false(keys().master_weights); }

}  // namespace mlp_ext
