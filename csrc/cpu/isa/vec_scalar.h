// Vec of the scalar ISA: one lane. It is the specification that the other ISAs are tested against,
// and what runs on a CPU that has none of them. No fused multiply-add: without the instruction the
// C library's is slow.

MLP_NAMESPACE_BEGIN

template <class T>
struct Vec {
  using Mask = bool;
  static constexpr int kWidth = 1;
  static constexpr bool kPolynomials = false;  // elementary functions by the C library

  T v;

  Vec() = default;
  explicit Vec(T x) : v(x) {}
  static Mask first(int64_t n) { return n > 0; }
  static Vec load(const T* p) { return Vec(*p); }
  static Vec load(const T* p, Mask m) { return Vec(m ? *p : T(0)); }
  static Vec load(const BFloat16* p, Mask m) { return Vec(m ? T(to_float(*p)) : T(0)); }
  static Vec load(const Float16* p, Mask m) { return Vec(m ? T(to_float(*p)) : T(0)); }
  void store(T* p) const { *p = v; }
  void store(T* p, Mask m) const {
    if (m) *p = v;
  }
  void store(BFloat16* p, Mask m) const {
    if (m) *p = to_bfloat16(float(v));
  }
  void store(Float16* p, Mask m) const {
    if (m) *p = to_float16(float(v));
  }
};

MLP_NAMESPACE_END

#include "../../common/one_lane.h"

MLP_NAMESPACE_BEGIN

template <class T>
void keep_in_register(Vec<T>&) {}

template <class T>
Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
  return Vec<T>(a.v * b.v + c.v);
}
template <class T>
Vec<T> sqrt(Vec<T> a) {
  return Vec<T>(std::sqrt(a.v));
}
template <class T>
Vec<T> abs(Vec<T> a) {
  return Vec<T>(std::fabs(a.v));
}
template <class T>
T reduce_add(Vec<T> a) {
  return a.v;
}
template <class T>
T reduce_max(Vec<T> a) {
  return a.v;
}
template <class T>
void transpose(Vec<T> (&)[1]) {}

// MR x (panel vectors * 1) accumulators in the 16 registers of the x86-64 baseline. A short KC, for
// accuracy: the wide ISAs have many partial sums where this one has one.
template <class T>
struct Tile {
  static constexpr int64_t kRows = 2;
  static constexpr int kPanelVectors = 4, kRegisters = 16;
  static constexpr int64_t kKC = 32;
  static constexpr int64_t kMostDotRows = 8;
};

MLP_NAMESPACE_END
