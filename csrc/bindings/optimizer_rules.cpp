#include "optimizer_rules.h"

#include <cfloat>
#include <cmath>
#include <initializer_list>

#include "eligibility.h"
#include "memory.h"

namespace mlp_ext {

namespace {

// The groups' keys, each made once.
struct Keys {
  PyObject *lr, *weight_decay, *maximize, *momentum, *dampening, *nesterov, *betas, *eps, *amsgrad,
      *decoupled_weight_decay, *lr_decay, *alpha, *centered, *momentum_decay, *capturable,
      *differentiable, *master_weights, *fused, *foreach;

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
        fused(interned("fused")),
        foreach (interned("foreach")) {}
};

const Keys& keys() {
  static const Keys the_keys;
  return the_keys;
}

// An option and its value.
struct Named {
  const char* name;
  double value;
};

// The first that is not finite, or so large that torch may raise for want of a float32 of that
// size; null for none. Products of two of them are float32 numbers.
const char* first_strange(std::initializer_list<Named> options) {
  for (const Named& option : options) {
    if (!(std::abs(option.value) <= 1e18)) return option.name;
  }
  return nullptr;
}

// Of what is worked out from the options and the counters: not a float32 number, for which torch
// divides by zero, say.
const char* first_strange_outcome(const char* name, std::initializer_list<double> outcomes) {
  for (const double outcome : outcomes) {
    if (!(std::abs(outcome) <= FLT_MAX)) return name;
  }
  return nullptr;
}

// At 1 and beyond torch divides by zero, takes roots of negative numbers, or computes nonsense.
template <class Args>
const char* strange_betas(const Args& args) {
  const auto fits = [](double beta) { return beta >= 0 && beta < 1; };
  return fits(args.beta1) && fits(args.beta2) ? nullptr : "betas";
}

// A number of double precision: of NumPy's float32 torch would lose half the digits in 1 - beta^t,
// or in a centered variance.
double exact(PyObject* key, PyObject* object) {
  if (PyFloat_Check(object) || PyLong_Check(object)) return Group::named(key, object);
  throw Group::not_a_number(key, object);
}

template <class Args>
void read_betas(const Group& group, Args& args) {
  PyObject* const betas = group.get(keys().betas);
  if (!reads_as_sequence(betas) || PySequence_Fast_GET_SIZE(betas) != 2) {
    throw Group::not_a_number(keys().betas, betas);
  }
  args.beta1 = exact(keys().betas, PySequence_Fast_GET_ITEM(betas, 0));
  args.beta2 = exact(keys().betas, PySequence_Fast_GET_ITEM(betas, 1));
}

// Of each rule: its own options; which of its states they call for; which of its options, or what
// is worked out from them, is strange.

void read(const Group& group, SgdArgs& args) {
  args.momentum = group.number(keys().momentum);
  args.dampening = group.number(keys().dampening);
  args.nesterov = group.flag(keys().nesterov);
}
bool uses(const SgdArgs& args, int) { return args.momentum != 0; }
const char* strange(const SgdArgs& args) {
  return first_strange({{"momentum", args.momentum}, {"dampening", args.dampening}});
}

void read(const Group& group, AdamArgs& args) {
  read_betas(group, args);
  args.eps = group.number(keys().eps);
  args.amsgrad = group.flag(keys().amsgrad);
  args.decoupled = group.flag_or_false(keys().decoupled_weight_decay);
}
bool uses(const AdamArgs& args, int i) { return i < 2 || args.amsgrad; }
const char* strange(const AdamArgs& args) {
  if (const char* found = strange_betas(args)) return found;
  if (const char* found = first_strange({{"eps", args.eps}})) return found;
  return first_strange_outcome("lr", {args.step_size, args.bias_correction2_sqrt});
}

void read(const Group& group, AdagradArgs& args) {
  args.lr_decay = group.number(keys().lr_decay);
  args.eps = group.number(keys().eps);
}
bool uses(const AdagradArgs&, int) { return true; }
const char* strange(const AdagradArgs& args) {
  if (const char* found = first_strange({{"lr_decay", args.lr_decay}, {"eps", args.eps}})) {
    return found;
  }
  return first_strange_outcome("lr_decay", {args.step_size});
}

void read(const Group& group, RMSpropArgs& args) {
  args.alpha = exact(keys().alpha, group.get(keys().alpha));
  args.eps = group.number(keys().eps);
  args.momentum = group.number(keys().momentum);
  args.centered = group.flag(keys().centered);
}
bool uses(const RMSpropArgs& args, int i) {
  return i == 0 || (i == 1 ? args.centered : args.momentum > 0);
}
const char* strange(const RMSpropArgs& args) {
  // All of the variance is then rounding, of which torch's order leaves exactly 0.
  if (args.centered && args.alpha == 0) return "alpha";
  return first_strange({{"alpha", args.alpha}, {"eps", args.eps}, {"momentum", args.momentum}});
}

void read(const Group& group, NAdamArgs& args) {
  read_betas(group, args);
  args.eps = group.number(keys().eps);
  args.momentum_decay = group.number(keys().momentum_decay);
  args.decoupled = group.flag_or_false(keys().decoupled_weight_decay);
}
bool uses(const NAdamArgs&, int) { return true; }
const char* strange(const NAdamArgs& args) {
  if (const char* found = strange_betas(args)) return found;
  if (const char* found =
          first_strange({{"eps", args.eps}, {"momentum_decay", args.momentum_decay}})) {
    return found;
  }
  return first_strange_outcome("momentum_decay", {args.grad_step_size, args.momentum_step_size});
}

void read(const Group& group, RAdamArgs& args) {
  read_betas(group, args);
  args.eps = group.number(keys().eps);
  args.decoupled = group.flag_or_false(keys().decoupled_weight_decay);
}
bool uses(const RAdamArgs&, int) { return true; }
const char* strange(const RAdamArgs& args) {
  if (const char* found = strange_betas(args)) return found;
  if (const char* found = first_strange({{"eps", args.eps}})) return found;
  return first_strange_outcome("betas", {args.bias_correction1, args.rectification});
}

void read(const Group& group, AdamaxArgs& args) {
  read_betas(group, args);
  args.eps = group.number(keys().eps);
}
bool uses(const AdamaxArgs&, int) { return true; }
const char* strange(const AdamaxArgs& args) {
  if (const char* found = strange_betas(args)) return found;
  if (const char* found = first_strange({{"eps", args.eps}})) return found;
  return first_strange_outcome("lr", {args.step_size});
}

// One element of a type and on a device that the kernels of csrc/cuda read.
bool is_scalar_of_cuda(const at::Tensor& t) {
  return t.numel() == 1 && is_cuda_kernel_device(t.device()) && has_kernel_type(t) &&
         (t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble) && !t.is_neg();
}

// A number, or a tensor on the CPU that torch reads as one: in its own precision, from which the
// kernels' double differs by one rounding.
double number_or_tensor(const Group& group, PyObject* key) {
  PyObject* const object = group.get(key);
  double value = 0;
  if (!read_scalar(object, value)) return Group::named(key, object);
  // With foreach torch's classes differ in what they make of a tensor, and some raise.
  const bool fits = tensor_of(object).dim() == 0 || key == keys().lr;
  if (fits && !group.flag_or_false(keys().foreach)) return value;
  throw Group::not_a_number(key, object);
}

template <class Args>
step::AnyRuleArgs options_of(const Group& group, at::Tensor* lr_tensor) {
  Args args;
  PyObject* const lr = group.get(keys().lr);
  if (lr_tensor && is_tensor(lr) && is_scalar_of_cuda(tensor_of(lr))) {
    *lr_tensor = tensor_of(lr);
  } else {
    args.lr = number_or_tensor(group, keys().lr);
  }
  args.weight_decay = number_or_tensor(group, keys().weight_decay);
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
const char* strange_option(const step::AnyRuleArgs& any) {
  const Args& args = *std::get_if<Args>(&any);
  const char* const found = first_strange({{"lr", args.lr}, {"weight_decay", args.weight_decay}});
  return found ? found : strange(args);
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
          set_step<Args>,
          strange_option<Args>};
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

bool read_scalar(PyObject* object, double& value) {
  if (!is_tensor(object)) return false;
  const at::Tensor& t = tensor_of(object);
  const bool is_double = t.scalar_type() == at::kDouble;
  const bool reads = t.device().is_cpu() && has_kernel_type(t) && !t.requires_grad() &&
                     !t.is_neg() && !t._is_zerotensor() && !t.is_inference() &&
                     !t.unsafeGetTensorImpl()->key_set().has(c10::DispatchKey::Python) &&
                     t.dim() <= 1 && t.numel() == 1 && has_its_memory(t) &&
                     (is_double || t.scalar_type() == at::kFloat);
  if (reads) value = is_double ? *t.const_data_ptr<double>() : double(*t.const_data_ptr<float>());
  return reads;
}

bool has_masters(const Group& group) { return group.flag_or_false(keys().master_weights); }

}  // namespace mlp_ext
