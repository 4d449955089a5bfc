// exp, expm1, log1p01 (on [0, 1]), tanh, erf and 1 + exp of a Vec: the polynomials of common/math.h
// for float32 vectors, the C library lane by lane for float64 and for the scalar ISA.

MLP_NAMESPACE_BEGIN

#define MLP_ELEMENTARY(name, library)                                             \
  template <class T>                                                              \
  Vec<T> name(Vec<T> x) {                                                         \
    if constexpr (Vec<T>::kPolynomials) {                                         \
      return name##_f32(x);                                                       \
    } else {                                                                      \
      T lanes[Vec<T>::kWidth];                                                    \
      x.store(lanes);                                                             \
      for (int i = 0; i < Vec<T>::kWidth; ++i) lanes[i] = std::library(lanes[i]); \
      return Vec<T>::load(lanes);                                                 \
    }                                                                             \
  }
MLP_ELEMENTARY(exp, exp)
MLP_ELEMENTARY(expm1, expm1)
MLP_ELEMENTARY(log1p01, log1p)
MLP_ELEMENTARY(tanh, tanh)
MLP_ELEMENTARY(erf, erf)
#undef MLP_ELEMENTARY

template <class T>
Vec<T> one_plus_exp(Vec<T> x) {
  if constexpr (Vec<T>::kPolynomials) {
    return one_plus_exp_f32(x);
  } else {
    return Vec<T>(1) + exp(x);
  }
}

// Lane by lane for all types: only a loss of a final sigmoid takes logarithms.
template <class T>
Vec<T> log(Vec<T> x) {
  T lanes[Vec<T>::kWidth];
  x.store(lanes);
  for (int i = 0; i < Vec<T>::kWidth; ++i) lanes[i] = std::log(lanes[i]);
  return Vec<T>::load(lanes);
}

MLP_NAMESPACE_END
