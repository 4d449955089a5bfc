// The update rules, one element at a time, once for every backend. The order of operations is that
// of PyTorch's for-loop implementations (torch/optim/*.py), so that states agree to rounding. V is
// a SIMD vector or a scalar; a rule is made from its options once a call and applied to an element,
// its gradient and its states: kStates of them, the first kAlways whatever the options are.

MLP_NAMESPACE_BEGIN

// NaN if either is, as torch.maximum; V's own max returns its second argument where one is NaN.
template <class V>
MLP_FN V maximum(V a, V b) {
  return select(a <= a, max(a, b), a);
}

// What every rule does first: the gradient with its scale, its sign and the L2 penalty.
template <class V>
struct GradientTerm {
  V scale, weight_decay;
  bool decays;

  MLP_FN GradientTerm(const RuleArgs& p, bool decoupled)
      : scale(p.maximize ? -p.grad_scale : p.grad_scale),
        weight_decay(p.weight_decay),
        decays(p.weight_decay != 0 && !decoupled) {}

  MLP_FN V operator()(V grad, V param) const {
    grad = scale * grad;
    return decays ? fma(weight_decay, param, grad) : grad;
  }
};

// AdamW's weight decay, of the parameter itself.
template <class V>
struct DecoupledDecay {
  V factor;
  bool decays;

  MLP_FN DecoupledDecay(const RuleArgs& p, bool decoupled)
      : factor(1 - p.lr * p.weight_decay), decays(p.weight_decay != 0 && decoupled) {}

  MLP_FN V operator()(V param) const { return decays ? param * factor : param; }
};

// Adam's running means of the gradient and of its square.
template <class V>
struct Moments {
  V one_minus_beta1, beta2, one_minus_beta2;

  MLP_FN Moments(double beta1, double beta2)
      : one_minus_beta1(1 - beta1), beta2(beta2), one_minus_beta2(1 - beta2) {}

  MLP_FN V first(V exp_avg, V grad) const { return fma(one_minus_beta1, grad - exp_avg, exp_avg); }
  MLP_FN V second(V exp_avg_sq, V grad) const {
    return fma(one_minus_beta2 * grad, grad, beta2 * exp_avg_sq);
  }
};

template <class V>
struct SgdRule {
  static constexpr int kStates = 1, kAlways = 0;
  GradientTerm<V> gradient;
  V lr, momentum, one_minus_dampening;
  bool has_momentum, first, nesterov;

  MLP_FN explicit SgdRule(const SgdArgs& p)
      : gradient(p, false),
        lr(p.lr),
        momentum(p.momentum),
        one_minus_dampening(1 - p.dampening),
        has_momentum(p.momentum != 0),
        first(p.first),
        nesterov(p.nesterov) {}

  MLP_FN void operator()(V& param, V grad, V& momentum_buffer, V&, V&) const {
    grad = gradient(grad, param);
    if (has_momentum) {
      momentum_buffer = first ? grad : fma(one_minus_dampening, grad, momentum * momentum_buffer);
      grad = nesterov ? fma(momentum, momentum_buffer, grad) : momentum_buffer;
    }
    param = fma(-lr, grad, param);
  }
};

template <class V>
struct AdamRule {
  static constexpr int kStates = 3, kAlways = 2;
  GradientTerm<V> gradient;
  DecoupledDecay<V> decay;
  Moments<V> moments;
  V step_size, bias_correction2_factor, eps;  // factor: a division less than torch has

  bool amsgrad;

  MLP_FN explicit AdamRule(const AdamArgs& p)
      : gradient(p, p.decoupled),
        decay(p, p.decoupled),
        moments(p.beta1, p.beta2),
        step_size(p.step_size),
        bias_correction2_factor(1 / p.bias_correction2_sqrt),
        eps(p.eps),
        amsgrad(p.amsgrad) {}

  MLP_FN void operator()(V& param, V grad, V& exp_avg, V& exp_avg_sq, V& max_exp_avg_sq) const {
    grad = gradient(grad, param);
    param = decay(param);
    exp_avg = moments.first(exp_avg, grad);
    exp_avg_sq = moments.second(exp_avg_sq, grad);
    V second = exp_avg_sq;
    if (amsgrad) second = max_exp_avg_sq = maximum(max_exp_avg_sq, exp_avg_sq);
    param = param - step_size * exp_avg / fma(sqrt(second), bias_correction2_factor, eps);
  }
};

template <class V>
struct AdagradRule {
  static constexpr int kStates = 1, kAlways = 1;
  GradientTerm<V> gradient;
  V step_size, eps;

  MLP_FN explicit AdagradRule(const AdagradArgs& p)
      : gradient(p, false), step_size(p.step_size), eps(p.eps) {}

  MLP_FN void operator()(V& param, V grad, V& sum, V&, V&) const {
    grad = gradient(grad, param);
    sum = fma(grad, grad, sum);
    param = param - step_size * grad / (sqrt(sum) + eps);
  }
};

template <class V>
struct RMSpropRule {
  static constexpr int kStates = 3, kAlways = 1;
  GradientTerm<V> gradient;
  V lr, alpha, one_minus_alpha, eps, momentum;
  bool centered, has_momentum;

  MLP_FN explicit RMSpropRule(const RMSpropArgs& p)
      : gradient(p, false),
        lr(p.lr),
        alpha(p.alpha),
        one_minus_alpha(1 - p.alpha),
        eps(p.eps),
        momentum(p.momentum),
        centered(p.centered),
        has_momentum(p.momentum > 0) {}

  MLP_FN void operator()(V& param, V grad, V& square_avg, V& grad_avg, V& momentum_buffer) const {
    grad = gradient(grad, param);
    square_avg = fma(one_minus_alpha * grad, grad, alpha * square_avg);
    V second = square_avg;
    if (centered) {
      grad_avg = fma(one_minus_alpha, grad - grad_avg, grad_avg);
      second = fma(-grad_avg, grad_avg, square_avg);
    }
    const V denom = sqrt(second) + eps;
    if (has_momentum) {
      momentum_buffer = momentum * momentum_buffer + grad / denom;
      param = fma(-lr, momentum_buffer, param);
    } else {
      param = param - lr * grad / denom;
    }
  }
};

template <class V>
struct NAdamRule {
  static constexpr int kStates = 2, kAlways = 2;
  GradientTerm<V> gradient;
  DecoupledDecay<V> decay;
  Moments<V> moments;
  V grad_step_size, momentum_step_size, bias_correction2, eps;

  MLP_FN explicit NAdamRule(const NAdamArgs& p)
      : gradient(p, p.decoupled),
        decay(p, p.decoupled),
        moments(p.beta1, p.beta2),
        grad_step_size(p.grad_step_size),
        momentum_step_size(p.momentum_step_size),
        bias_correction2(p.bias_correction2),
        eps(p.eps) {}

  MLP_FN void operator()(V& param, V grad, V& exp_avg, V& exp_avg_sq, V&) const {
    grad = gradient(grad, param);
    param = decay(param);
    exp_avg = moments.first(exp_avg, grad);
    exp_avg_sq = moments.second(exp_avg_sq, grad);
    const V denom = sqrt(exp_avg_sq / bias_correction2) + eps;
    param = param - grad_step_size * grad / denom;
    param = param - momentum_step_size * exp_avg / denom;
  }
};

template <class V>
struct RAdamRule {
  static constexpr int kStates = 2, kAlways = 2;
  GradientTerm<V> gradient;
  DecoupledDecay<V> decay;
  Moments<V> moments;
  V lr, bias_correction1, bias_correction2_sqrt, rectification, eps;
  bool rectifies;

  MLP_FN explicit RAdamRule(const RAdamArgs& p)
      : gradient(p, p.decoupled),
        decay(p, p.decoupled),
        moments(p.beta1, p.beta2),
        lr(p.lr),
        bias_correction1(p.bias_correction1),
        bias_correction2_sqrt(p.bias_correction2_sqrt),
        rectification(p.rectification),
        eps(p.eps),
        rectifies(p.rectification != 0) {}

  MLP_FN void operator()(V& param, V grad, V& exp_avg, V& exp_avg_sq, V&) const {
    grad = gradient(grad, param);
    param = decay(param);
    exp_avg = moments.first(exp_avg, grad);
    exp_avg_sq = moments.second(exp_avg_sq, grad);
    V update = exp_avg / bias_correction1 * lr;
    if (rectifies) {
      const V adaptive = bias_correction2_sqrt / (sqrt(exp_avg_sq) + eps);
      update = update * adaptive * rectification;
    }
    param = param - update;
  }
};

template <class V>
struct AdamaxRule {
  static constexpr int kStates = 2, kAlways = 2;
  GradientTerm<V> gradient;
  V one_minus_beta1, beta2, eps, step_size;

  MLP_FN explicit AdamaxRule(const AdamaxArgs& p)
      : gradient(p, false),
        one_minus_beta1(1 - p.beta1),
        beta2(p.beta2),
        eps(p.eps),
        step_size(p.step_size) {}

  MLP_FN void operator()(V& param, V grad, V& exp_avg, V& exp_inf, V&) const {
    grad = gradient(grad, param);
    exp_avg = fma(one_minus_beta1, grad - exp_avg, exp_avg);
    exp_inf = maximum(beta2 * exp_inf, abs(grad) + eps);
    param = param - step_size * exp_avg / exp_inf;
  }
};

MLP_NAMESPACE_END
