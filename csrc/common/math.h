// Elementary functions for float32 vectors, in the primitives of V alone.
//
// The coefficients are minimax fits made for this file (weighted least squares on Chebyshev nodes,
// reweighted toward equal error); the measured worst relative error of each over its range is in
// its comment. float64 goes through the C library instead, lane by lane (cpu/kernels/math.h).
// V brings fma, round, scale2(x, n) = x * 2^n, exponent_of_low_bits (below), with_sign_of(x, y) for
// y >= 0, and min / max that return their second argument where that is NaN, so NaN comes out of
// every function here that gets one.

MLP_NAMESPACE_BEGIN

template <class V>
V horner(V, double c) {
  return V(c);
}
template <class V, class... Rest>
V horner(V x, double c, Rest... rest) {
  return fma(horner(x, rest...), x, V(c));
}

constexpr double kLog2E = 1.44269504088896340736;
// ln 2 in two parts; the first has 9 trailing zero bits, so n * kLn2High is exact for |n| < 2^9.
constexpr double kLn2High = 0.693359375;
constexpr double kLn2Low = -2.12194440054690582e-4;

// e^r - 1 on |r| <= ln(2) / 2 (fit: 5e-11).
template <class V>
V expm1_reduced(V r) {
  const V tail =
      horner(r, 0.5, 0.166666672, 0.0416662693, 0.00833326485, 0.001394619, 0.000199179733);
  return fma(r * r, tail, r);
}

// x + kIntegers is round(x) + kIntegers, since floats there lie 1 apart, and its low 8 bits are the
// exponent of 2^round(x). exponent_of_low_bits() makes that power of them by one shift, where
// rounding, converting, adding the bias and shifting would take five micro-ops (|round(x)| < 127).
constexpr double kIntegers = 12582912.0 + 127;  // 1.5 * 2^23 + bias

// x - n ln 2.
template <class V>
V less_ln2(V x, V n) {
  return fma(n, V(-kLn2Low), fma(n, V(-kLn2High), x));
}

// r of e^x = 2^n e^r, and 2^n (integers = kIntegers) or 2^(n - 1) (kIntegers - 1) as `power`.
template <class V>
V reduce_ln2(V x, double integers, V& power) {
  const V shifted = fma(x, V(kLog2E), V(integers));
  power = exponent_of_low_bits(shifted);
  return less_ln2(x, shifted - V(integers));
}

// e^x, 1.1 ulp; 0 below -104, inf above 88.73.
template <class V>
V exp_f32(V x) {
  const V bounded = max(V(-105), min(V(90), x)), n = round(bounded * V(kLog2E));
  return scale2(expm1_reduced(less_ln2(bounded, n)) + V(1), n);
}

// e^x - 1 for x <= 87, relative precision kept near 0.
template <class V>
V expm1_f32(V x) {
  V power;
  const V r = reduce_ln2(max(V(-40), min(V(87), x)), kIntegers, power);
  return fma(power, expm1_reduced(r), power - V(1));
}

// 1 + e^x, 1 ulp; inf above 88.73. With 2^(n - 1) and 2 e^r, so that n = 128 needs no second factor
// (fit of e^r: 3e-9).
template <class V>
V one_plus_exp_f32(V x) {
  V half_power;
  const V r = reduce_ln2(max(V(-40), min(V(89), x)), kIntegers - 1, half_power);
  const V tail = horner(r, 0.49999994, 0.166665211, 0.041668389, 0.00836874545, 0.00138145394);
  const V twice = fma(fma(r * r, tail, r), V(2), V(2));
  return fma(half_power, twice, V(1));
}

// log(1 + u) on 0 <= u <= 1, by 2 atanh(u / (2 + u)) (fit: 1e-10).
template <class V>
V log1p01_f32(V u) {
  const V s = u / (V(2) + u);
  const V square = s * s;
  const V tail = horner(square, 0.333333373, 0.199994385, 0.143084422, 0.107138284, 0.121504694);
  return V(2) * fma(s * square, tail, s);
}

// tanh, 1.3 ulp: an odd polynomial up to 0.625 (fit: 4e-9), 1 - 2 / (e^2|x| + 1) beyond. That is 1
// to rounding from |x| = 9.1 on. e^2|x| = 2^n 2^f is wanted to 3 ulp only, as at 0.625 a third of
// its error is left: f, with |f| <= 1/2, comes of one product (fit of 2^f: 2e-9).
// (One formula for all x, as expm1(2|x|) / (expm1(2|x|) + 2), is off by 2.4 ulp near 0.)
template <class V>
V tanh_f32(V x) {
  const V square = x * x, magnitude = abs(x);
  const V tail =
      horner(square, -0.333332807, 0.133314416, -0.0537397154, 0.0206390861, -0.00570498686);
  const V small = fma(magnitude * square, tail, magnitude);
  const V bounded = min(V(9.5), magnitude);
  const V shifted = fma(bounded, V(2 * kLog2E), V(kIntegers));
  const V f = fma(bounded, V(2 * kLog2E), V(kIntegers) - shifted);
  const V series = horner(f, 0.693147182, 0.240226477, 0.0555033237, 0.00961843785, 0.00133989519,
                          0.000153532994);
  const V power = exponent_of_low_bits(shifted);
  const V large = V(1) - V(2) / fma(power * f, series, power + V(1));
  return with_sign_of(x, select(magnitude > V(0.625), large, small));
}

// erf, 2 ulp: 1 - e^(-t q(t)) with t = |x| and t q(t) = -log(erfc t) fitted on [0, 4] (fit: 4e-10);
// beyond 4 it is 1 to rounding.
template <class V>
V erf_f32(V x) {
  const V t = min(V(4), abs(x));
  const V q =
      horner(t, 1.12837923, 0.636619806, 0.102771275, -0.0191176943, -0.000253062171, 0.00179935561,
             -0.000740687363, 0.000167481659, -2.13547701e-05, 1.19331651e-06);
  return with_sign_of(x, -expm1_f32(-t * q));
}

MLP_NAMESPACE_END
