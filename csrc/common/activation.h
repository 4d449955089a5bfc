// The activations, once for every backend: forward(x) and backward(dy, saved).
//
// V is a SIMD vector or a scalar wrapper. It brings arithmetic, comparisons that give
// a mask, select(mask, a, b), fma, abs, and max(a, b) that is NaN where b is NaN (the x86 rule),
// beside exp, one_plus_exp, expm1, log1p01, tanh and erf. `saved` is the output or the
// pre-activation, as the functor's row in activation_kind.h says. Backward selects rather than
// multiplies where the derivative is zero: an infinite dy behind a dead ReLU gives 0, as in
// PyTorch.
//
// Formulas and hyperparameters are those of torch.nn.functional at its defaults: leaky_relu slope
// 0.01, elu alpha 1, softplus beta 1 and threshold 20.
//
// Included between MLP_NAMESPACE_BEGIN and MLP_NAMESPACE_END of a target region: see
// cpu/isa/region_begin.h for why nothing here may have external linkage.

MLP_NAMESPACE_BEGIN

constexpr double kLeakySlope = 0.01;
constexpr double kSoftplusThreshold = 20.0;
constexpr double kInvSqrt2 = 0.70710678118654752440;
constexpr double kInvSqrt2Pi = 0.39894228040143267794;
constexpr double kSqrt2OverPi = 0.79788456080286535588;
constexpr double kGeluCubic = 0.044715;

struct Identity {
  template <class V>
  MLP_FN static V forward(V x) {
    return x;
  }
  template <class V>
  MLP_FN static V backward(V dy, V) {
    return dy;
  }
};

struct Relu {
  template <class V>
  MLP_FN static V forward(V x) {
    return max(V(0), x);  // NaN stays NaN
  }
  template <class V>
  MLP_FN static V backward(V dy, V y) {
    return select(y <= V(0), V(0), dy);  // NaN passes dy on, as threshold_backward does
  }
};

struct Gelu {
  template <class V>
  MLP_FN static V forward(V x) {
    return V(0.5) * x * (V(1) + erf(x * V(kInvSqrt2)));
  }
  template <class V>
  MLP_FN static V backward(V dy, V x) {
    const V cdf = V(0.5) * (V(1) + erf(x * V(kInvSqrt2)));
    const V pdf = V(kInvSqrt2Pi) * exp(V(-0.5) * x * x);
    return dy * fma(x, pdf, cdf);
  }
};

// 0.5 x (1 + tanh(u)) = x sigmoid(2u), which unlike the left side keeps its digits where x is
// negative; u = sqrt(2 / pi) (x + 0.044715 x^3).
struct GeluTanh {
  template <class V>
  MLP_FN static V minus_2u(V x, V square) {
    return V(-2 * kSqrt2OverPi) * fma(V(kGeluCubic) * x, square, x);
  }
  template <class V>
  MLP_FN static V forward(V x) {
    return x / one_plus_exp(minus_2u(x, x * x));
  }
  template <class V>
  MLP_FN static V backward(V dy, V x) {
    const V square = x * x;
    const V w = minus_2u(x, square);
    const V e = exp(min(V(80), w));  // bounded, so that e s stays finite
    const V s = V(1) / (V(1) + e);
    const V outer = select(w > V(80), V(0), s);
    const V slope = V(2 * kSqrt2OverPi) * fma(V(3 * kGeluCubic), square, V(1));
    return dy * fma(outer * (e * s) * x, slope, outer);
  }
};

struct Sigmoid {
  template <class V>
  MLP_FN static V forward(V x) {
    return V(1) / one_plus_exp(-x);
  }
  template <class V>
  MLP_FN static V backward(V dy, V y) {
    return dy * ((V(1) - y) * y);
  }
};

struct Silu {
  template <class V>
  MLP_FN static V forward(V x) {
    return x / one_plus_exp(-x);
  }
  template <class V>
  MLP_FN static V backward(V dy, V x) {
    const V s = Sigmoid::forward(x);
    return dy * (s * fma(x, V(1) - s, V(1)));
  }
};

struct Tanh {
  template <class V>
  MLP_FN static V forward(V x) {
    return tanh(x);
  }
  template <class V>
  MLP_FN static V backward(V dy, V y) {
    return dy * (V(1) - y * y);
  }
};

struct LeakyRelu {
  template <class V>
  MLP_FN static V forward(V x) {
    return select(x > V(0), x, V(kLeakySlope) * x);
  }
  template <class V>
  MLP_FN static V backward(V dy, V x) {
    return select(x > V(0), dy, V(kLeakySlope) * dy);
  }
};

struct Elu {
  template <class V>
  MLP_FN static V forward(V x) {
    return select(x > V(0), x, expm1(x));
  }
  template <class V>
  MLP_FN static V backward(V dy, V x) {
    return select(x > V(0), dy, dy * exp(x));  // NaN gives NaN, as torch's vectors do
  }
};

struct Softplus {
  template <class V>
  MLP_FN static V forward(V x) {
    const V smooth = max(V(0), x) + log1p01(exp(-abs(x)));
    return select(x > V(kSoftplusThreshold), x, smooth);
  }
  template <class V>
  MLP_FN static V backward(V dy, V x) {
    return select(x > V(kSoftplusThreshold), dy, dy / one_plus_exp(-x));
  }
};

MLP_NAMESPACE_END
