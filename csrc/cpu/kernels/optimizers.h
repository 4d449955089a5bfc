// One optimizer step over a flat run of elements: load a vector of every stream, apply the rule of
// common/optimizer_rules.h, store. Bound by memory beyond the caches: Adam in float32 moves 28
// bytes a parameter (16 read, 12 written).

MLP_NAMESPACE_BEGIN

template <class S>
void sgd(const SgdArgs& p, S* param, const S* grad, S* buffer, int64_t n) {
  using T = typename ComputeOf<S>::type;
  using V = Vec<T>;
  SgdRule<V> rule;
  rule.grad_scale = V(T(p.grad_scale));
  rule.lr = V(T(p.lr));
  rule.weight_decay = V(T(p.weight_decay));
  rule.momentum = V(T(p.momentum));
  rule.one_minus_dampening = V(T(1 - p.dampening));
  rule.decays = p.weight_decay != 0;
  rule.has_momentum = p.momentum != 0;
  rule.first = p.first;
  rule.nesterov = p.nesterov;
  rule.maximize = p.maximize;
  const bool reads_buffer = rule.has_momentum && !rule.first;
  for (int64_t i = 0; i < n; i += V::kWidth) {
    const auto lanes = V::first(n - i);
    V x = V::load(param + i, lanes);
    V momentum = reads_buffer ? V::load(buffer + i, lanes) : V(T(0));
    rule(x, V::load(grad + i, lanes), momentum);
    if (rule.has_momentum) momentum.store(buffer + i, lanes);
    x.store(param + i, lanes);
  }
}

template <class S>
void adam(const AdamArgs& p, S* param, const S* grad, S* exp_avg, S* exp_avg_sq, S* max_exp_avg_sq,
          int64_t n) {
  using T = typename ComputeOf<S>::type;
  using V = Vec<T>;
  AdamRule<V> rule;
  rule.grad_scale = V(T(p.grad_scale));
  rule.one_minus_beta1 = V(T(1 - p.beta1));
  rule.beta2 = V(T(p.beta2));
  rule.one_minus_beta2 = V(T(1 - p.beta2));
  rule.step_size = V(T(p.step_size));
  rule.bias_correction2_sqrt = V(T(p.bias_correction2_sqrt));
  rule.eps = V(T(p.eps));
  rule.weight_decay = V(T(p.weight_decay));
  rule.decay_factor = V(T(1 - p.lr * p.weight_decay));
  rule.decays = p.weight_decay != 0;
  rule.decoupled = p.decoupled;
  rule.amsgrad = p.amsgrad;
  rule.maximize = p.maximize;
  for (int64_t i = 0; i < n; i += V::kWidth) {
    const auto lanes = V::first(n - i);
    V x = V::load(param + i, lanes);
    V first = V::load(exp_avg + i, lanes);
    V second = V::load(exp_avg_sq + i, lanes);
    V most = rule.amsgrad ? V::load(max_exp_avg_sq + i, lanes) : V(T(0));
    rule(x, V::load(grad + i, lanes), first, second, most);
    first.store(exp_avg + i, lanes);
    second.store(exp_avg_sq + i, lanes);
    if (rule.amsgrad) most.store(max_exp_avg_sq + i, lanes);
    x.store(param + i, lanes);
  }
}

MLP_NAMESPACE_END
