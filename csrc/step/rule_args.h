// The options of any update rule, and one step of it.
#pragma once

#include <variant>

#include "../cpu/kernel_table.h"

namespace mlp_ext::step {

using AnyRuleArgs =
    std::variant<SgdArgs, AdamArgs, AdagradArgs, RMSpropArgs, NAdamArgs, RAdamArgs, AdamaxArgs>;

inline RuleArgs& common_options(AnyRuleArgs& args) {
  return std::visit([](RuleArgs& each) -> RuleArgs& { return each; }, args);
}

// One step of n elements from element `first` on. param, grad and the states that are not null
// point to element 0.
template <class S>
void run_rule(const cpu::OptimizerKernels<S>& kernels, const AnyRuleArgs& args, S* param,
              const S* grad, S* const states[kMostStates], int64_t first, int64_t n) {
  S* from[kMostStates];
  for (int i = 0; i < kMostStates; ++i) from[i] = states[i] ? states[i] + first : nullptr;
  std::visit([&](const auto& each) { kernels.run(each, param + first, grad + first, from, n); },
             args);
}

}  // namespace mlp_ext::step
