// The elementwise losses, once for every backend: value and derivative with respect to the input x
// of one element, at target t. Formulas are those of torch.nn.functional.
//
// V brings what common/activation.h says, and log. `parameter` is huber's delta or smooth_l1's
// beta, `pos_weight` that of binary_cross_entropy_with_logits (1 without).

MLP_NAMESPACE_BEGIN

template <class V>
struct LossAt {
  V value, slope;
};

struct MseLoss {
  template <class V>
  MLP_FN static LossAt<V> at(V x, V t, V, V) {
    const V d = x - t;
    return {d * d, d + d};
  }
};

struct L1Loss {
  template <class V>
  MLP_FN static LossAt<V> at(V x, V t, V, V) {
    const V d = x - t;
    return {abs(d), select(d > V(0), V(1), select(d < V(0), V(-1), V(0)))};  // 0 for NaN, as torch
  }
};

// -1, 0 or 1; NaN for NaN.
template <class V>
MLP_FN V sign(V d) {
  return select(d > V(0), V(1), select(d < V(0), V(-1), d * V(0)));
}

struct HuberLoss {
  template <class V>
  MLP_FN static LossAt<V> at(V x, V t, V delta, V) {
    const V d = x - t, size = abs(d);
    return {select(size < delta, V(0.5) * d * d, delta * (size - V(0.5) * delta)),
            select(size < delta, d, delta * sign(d))};
  }
};

struct SmoothL1Loss {
  template <class V>
  MLP_FN static LossAt<V> at(V x, V t, V beta, V) {
    const V d = x - t, size = abs(d);
    return {select(size < beta, V(0.5) * d * d / beta, size - V(0.5) * beta),
            select(size < beta, d / beta, sign(d))};
  }
};

// (1 - t) x + (1 + (pos_weight - 1) t) log(1 + e^-x), in a form that neither overflows. The slope
// (1 - t) sigmoid(x) - pos_weight t sigmoid(-x) is worked out from the smaller sigmoid, whose
// digits 1 - sigmoid would lose: those of a negative that is classified well. At infinities,
// without pos_weight (1), both are what torch gives.
struct BceWithLogitsLoss {
  template <class V>
  MLP_FN static LossAt<V> at(V x, V t, V, V pos_weight) {
    const V e = exp(-abs(x)), small = e / (V(1) + e);
    const V rest = V(1) - t, hit = pos_weight * t;
    const V weight = select(pos_weight == V(1), V(1), fma(pos_weight - V(1), t, V(1)));
    const V both = select(pos_weight == V(1), V(1), hit + rest);
    const V softplus = log1p01(e) + max(V(0), -x);
    return {fma(weight, softplus, rest * x),
            select(x > V(0), rest - both * small, both * small - hit)};
  }
};

// -(t log x + (1 - t) log(1 - x)), the logarithms bounded by -100 and the slope's divisor by 1e-12.
struct BceLoss {
  template <class V>
  MLP_FN static LossAt<V> at(V x, V t, V, V) {
    const V low = max(V(-100), log(x)), high = max(V(-100), log(V(1) - x));
    const V spread = max(V(1e-12), (V(1) - x) * x);
    return {(t - V(1)) * high - t * low, (x - t) / spread};
  }
};

MLP_NAMESPACE_END
