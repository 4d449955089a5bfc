// One optimizer step over a flat run of elements: load a vector of every stream, apply the rule of
// common/optimizer_rules.h, store. Bound by memory beyond the caches: Adam in float32 moves 28
// bytes a parameter (16 read, 12 written).

MLP_NAMESPACE_BEGIN

// The value that takes the step: the master weight, or the parameter where that is not the master's
// rounding.
template <class V, class S>
V current_weight(V master, const S* param, typename V::Mask lanes) {
  S rounded[V::kWidth];
  master.store(rounded, lanes);
  const V was = V::load(rounded, lanes), is = V::load(param, lanes);
  return select(was <= is, select(is <= was, master, is), is);
}

// S is what parameters and gradients are stored as, W what states and `master` are; no master
// where the two are one.
template <template <class> class Rule, class Args, class S, class W>
MLP_INLINE void step_any(const Args& args, S* param, const S* grad, W* const* states, W* master,
                         int64_t n) {
  using V = VecOf<S>;
  constexpr bool kHasMaster = !std::is_same_v<S, W>;
  const Rule<V> rule(args);
  constexpr int kStates = Rule<V>::kStates, kAlways = Rule<V>::kAlways;
  W* const a = states[0];
  W* const b = kStates > 1 ? states[1] : nullptr;
  W* const c = kStates > 2 ? states[2] : nullptr;
  const bool has_a = kAlways > 0 || a, has_b = kAlways > 1 || (kStates > 1 && b),
             has_c = kAlways > 2 || (kStates > 2 && c);
  for (int64_t i = 0; i < n; i += V::kWidth) {
    const auto lanes = V::first(n - i);
    V x;
    if constexpr (kHasMaster) {
      x = current_weight(V::load(master + i, lanes), param + i, lanes);
    } else {
      x = V::load(param + i, lanes);
    }
    V s0 = has_a ? V::load(a + i, lanes) : V(0);
    V s1 = has_b ? V::load(b + i, lanes) : V(0);
    V s2 = has_c ? V::load(c + i, lanes) : V(0);
    rule(x, V::load(grad + i, lanes), s0, s1, s2);
    if (has_a) s0.store(a + i, lanes);
    if (has_b) s1.store(b + i, lanes);
    if (has_c) s2.store(c + i, lanes);
    if constexpr (kHasMaster) x.store(master + i, lanes);
    x.store(param + i, lanes);
  }
}

template <template <class> class Rule, class Args, class S>
void step(const Args& args, S* param, const S* grad, S* const* states, int64_t n) {
  step_any<Rule>(args, param, grad, states, static_cast<S*>(nullptr), n);
}

template <template <class> class Rule, class Args, class S>
void step_master(const Args& args, S* param, const S* grad, float* const* states, float* master,
                 int64_t n) {
  step_any<Rule>(args, param, grad, states, master, n);
}

MLP_NAMESPACE_END
