// What the optimizers' rules keep in a parameter's state and read from a group: one description a
// rule, by which one step function, and TrainStep, serve all of them.
#pragma once

#include <string>

#include "../common/optimizer_schedule.h"
#include "../step/rule_args.h"
#include "param_group.h"

namespace mlp_ext {

// What a state has to share with its parameter, besides the shape, or torch's step raises. Where it
// shares less than everything torch computes in another precision, and so must run itself.
enum class Shares { kShape, kDevice, kDeviceAndDtype };

struct StateName {
  const char* name = nullptr;
  Shares shares = Shares::kDevice;
};

struct UpdateRule {
  const char* name;               // also that of the compiled step: sgd_step
  StateName states[kMostStates];  // in the kernel's order; those after the last have no name
  bool counts;                    // keeps a scalar tensor "step"
  bool multiplies;                // keeps a scalar tensor "mu_product"
  // states[0] is made by the first step; other states exist before it (torch's _init_group).
  bool makes_first_state;

  // lr_tensor: receives a learning rate that is a tensor for the kernels of csrc/cuda to read. Null
  // where no option may be a tensor, as it could change unseen. May throw NotANumber and pybind11's
  // exceptions.
  step::AnyRuleArgs (*options)(const Group&, at::Tensor* lr_tensor);
  // Whether these options call for states[i].
  bool (*uses)(const step::AnyRuleArgs&, int i);
  // Works out what depends on the counters.
  void (*at_step)(step::AnyRuleArgs&, Counters&);
  // The name of an option that is out of the range in which the kernels compute what torch does
  // (which may raise instead), by its value or by what at_step made of it; null for none.
  const char* (*strange)(const step::AnyRuleArgs&);

  // The name of states[i] as a Python string.
  PyObject* state_key(int i) const;
};

constexpr int kRuleCount = 0
#define MLP_RULE(name, Name) +1
    MLP_FOR_EACH_RULE(MLP_RULE)
#undef MLP_RULE
    ;

extern const UpdateRule kRules[kRuleCount];

// Null for an unknown name.
const UpdateRule* rule_named(const std::string& name);

// Options under which torch's own step has to run on the CPU.
bool asks_for_torch(const Group& group);
// The same on CUDA.
bool is_differentiable(const Group& group);

// Where torch keeps the counters of CUDA parameters: on their device with `capturable` or `fused`,
// else on the CPU.
bool is_capturable(const Group& group);
bool is_fused(const Group& group);
// Whether the class has the option `capturable`, and so refuses to be captured without.
bool may_be_capturable(const Group& group);

// An option of ours alone: 16-bit parameters have a float32 master in state["master"].
bool has_masters(const Group& group);

}  // namespace mlp_ext
