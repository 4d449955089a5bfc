// Vec for the formulas of csrc/common on the GPU: one element, with CUDA's elementary functions
// (the accurate ones: exp 1 ulp, tanh 1 ulp, erf 2 ulp in float32).
#pragma once

#include "../common/function.h"
#include "simt.h"

MLP_NAMESPACE_BEGIN

template <class T>
struct Vec {
  T v;

  Vec() = default;
  MLP_FN explicit Vec(T x) : v(x) {}
};

MLP_NAMESPACE_END

#include "../common/one_lane.h"

MLP_NAMESPACE_BEGIN

#define MLP_ELEMENTARY(name, float_name, double_name)                                   \
  MLP_FN inline Vec<float> name(Vec<float> x) { return Vec<float>(::float_name(x.v)); } \
  MLP_FN inline Vec<double> name(Vec<double> x) { return Vec<double>(::double_name(x.v)); }
MLP_ELEMENTARY(sqrt, sqrtf, sqrt)
MLP_ELEMENTARY(abs, fabsf, fabs)
MLP_ELEMENTARY(exp, expf, exp)
MLP_ELEMENTARY(expm1, expm1f, expm1)
MLP_ELEMENTARY(log, logf, log)
MLP_ELEMENTARY(log1p01, log1pf, log1p)
MLP_ELEMENTARY(tanh, tanhf, tanh)
MLP_ELEMENTARY(erf, erff, erf)
#undef MLP_ELEMENTARY

template <class T>
MLP_FN inline Vec<T> one_plus_exp(Vec<T> x) {
  return Vec<T>(1) + exp(x);
}

MLP_FN inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(::fmaf(a.v, b.v, c.v));
}
MLP_FN inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(::fma(a.v, b.v, c.v));
}

MLP_NAMESPACE_END
