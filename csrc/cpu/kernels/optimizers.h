// One optimizer step over a flat run of elements: load a vector of every stream, apply the rule of
// common/optimizer_rules.h, store. Bound by memory beyond the caches: Adam in float32 moves 28
// bytes a parameter (16 read, 12 written).

MLP_NAMESPACE_BEGIN

template <template <class> class Rule, class Args, class S>
void step(const Args& args, S* param, const S* grad, S* const* states, int64_t n) {
  using V = VecOf<S>;
  const Rule<V> rule(args);
  constexpr int kStates = Rule<V>::kStates, kAlways = Rule<V>::kAlways;
  S* const a = states[0];
  S* const b = kStates > 1 ? states[1] : nullptr;
  S* const c = kStates > 2 ? states[2] : nullptr;
  const bool has_a = kAlways > 0 || a, has_b = kAlways > 1 || (kStates > 1 && b),
             has_c = kAlways > 2 || (kStates > 2 && c);
  for (int64_t i = 0; i < n; i += V::kWidth) {
    const auto lanes = V::first(n - i);
    V x = V::load(param + i, lanes);
    V s0 = has_a ? V::load(a + i, lanes) : V(0);
    V s1 = has_b ? V::load(b + i, lanes) : V(0);
    V s2 = has_c ? V::load(c + i, lanes) : V(0);
    rule(x, V::load(grad + i, lanes), s0, s1, s2);
    if (has_a) s0.store(a + i, lanes);
    if (has_b) s1.store(b + i, lanes);
    if (has_c) s2.store(c + i, lanes);
    x.store(param + i, lanes);
  }
}

MLP_NAMESPACE_END
