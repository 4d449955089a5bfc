// Arithmetic of a Vec<T> of one lane, `v`, for whoever declares one: the scalar ISA, CUDA.

MLP_NAMESPACE_BEGIN

template <class T>
MLP_FN Vec<T> operator+(Vec<T> a, Vec<T> b) {
  return Vec<T>(a.v + b.v);
}
template <class T>
MLP_FN Vec<T> operator-(Vec<T> a, Vec<T> b) {
  return Vec<T>(a.v - b.v);
}
template <class T>
MLP_FN Vec<T> operator*(Vec<T> a, Vec<T> b) {
  return Vec<T>(a.v * b.v);
}
template <class T>
MLP_FN Vec<T> operator/(Vec<T> a, Vec<T> b) {
  return Vec<T>(a.v / b.v);
}
template <class T>
MLP_FN Vec<T> operator-(Vec<T> a) {
  return Vec<T>(-a.v);
}
template <class T>
MLP_FN bool operator<(Vec<T> a, Vec<T> b) {
  return a.v < b.v;
}
template <class T>
MLP_FN bool operator<=(Vec<T> a, Vec<T> b) {
  return a.v <= b.v;
}
template <class T>
MLP_FN bool operator>(Vec<T> a, Vec<T> b) {
  return a.v > b.v;
}
template <class T>
MLP_FN bool operator==(Vec<T> a, Vec<T> b) {
  return a.v == b.v;
}
// max and min give their second argument where one is NaN, as the x86 instructions do.
template <class T>
MLP_FN Vec<T> max(Vec<T> a, Vec<T> b) {
  return a.v > b.v ? a : b;
}
template <class T>
MLP_FN Vec<T> min(Vec<T> a, Vec<T> b) {
  return a.v < b.v ? a : b;
}
template <class T>
MLP_FN Vec<T> select(bool m, Vec<T> a, Vec<T> b) {
  return m ? a : b;
}

MLP_NAMESPACE_END
