// Vec of NEON (AArch64): 4 float or 2 double lanes. Partial vectors go through a small buffer.

MLP_NAMESPACE_BEGIN

template <class T>
struct Vec;

template <class T, int kWidth>
struct PartialBuffer {
  T lanes[kWidth] = {};
};

template <>
struct Vec<float> {
  using Mask = uint32x4_t;
  static constexpr int kWidth = 4;
  static constexpr bool kPolynomials = true;

  float32x4_t v;

  Vec() = default;
  MLP_INLINE Vec(float32x4_t x) : v(x) {}
  MLP_INLINE explicit Vec(float x) : v(vdupq_n_f32(x)) {}
  static MLP_INLINE Mask first(int64_t n) {
    const uint32_t index[4] = {0, 1, 2, 3};
    return vcltq_u32(vld1q_u32(index), vdupq_n_u32(n >= 4 ? 4 : uint32_t(n)));
  }
  static MLP_INLINE int count(Mask m) { return vaddvq_u32(vshrq_n_u32(m, 31)); }
  static MLP_INLINE Vec load(const float* p) { return vld1q_f32(p); }
  static MLP_INLINE Vec load(const float* p, Mask m) {
    const int n = count(m);
    if (n == 4) return vld1q_f32(p);
    PartialBuffer<float, 4> b;
    std::memcpy(b.lanes, p, n * sizeof(float));
    return vld1q_f32(b.lanes);
  }
  template <class Half>
  static MLP_INLINE Vec load_half(const Half* p, Mask m) {
    PartialBuffer<float, 4> b;
    for (int i = 0, n = count(m); i < n; ++i) b.lanes[i] = to_float(p[i]);
    return vld1q_f32(b.lanes);
  }
  static MLP_INLINE Vec load(const BFloat16* p, Mask m) { return load_half(p, m); }
  static MLP_INLINE Vec load(const Float16* p, Mask m) { return load_half(p, m); }
  MLP_INLINE void store(float* p) const { vst1q_f32(p, v); }
  MLP_INLINE void store(float* p, Mask m) const {
    const int n = count(m);
    if (n == 4) return vst1q_f32(p, v);
    PartialBuffer<float, 4> b;
    vst1q_f32(b.lanes, v);
    std::memcpy(p, b.lanes, n * sizeof(float));
  }
  MLP_INLINE void store(BFloat16* p, Mask m) const {
    PartialBuffer<float, 4> b;
    vst1q_f32(b.lanes, v);
    for (int i = 0, n = count(m); i < n; ++i) p[i] = to_bfloat16(b.lanes[i]);
  }
  MLP_INLINE void store(Float16* p, Mask m) const {
    PartialBuffer<float, 4> b;
    vst1q_f32(b.lanes, v);
    for (int i = 0, n = count(m); i < n; ++i) p[i] = to_float16(b.lanes[i]);
  }
};

// For a loaded value that is used more than once: GCC would read it again each time, as an operand
// in memory.
template <class T>
MLP_INLINE void keep_in_register(Vec<T>& a) {
  __asm__("" : "+w"(a.v));
}
MLP_INLINE Vec<float> operator+(Vec<float> a, Vec<float> b) { return vaddq_f32(a.v, b.v); }
MLP_INLINE Vec<float> operator-(Vec<float> a, Vec<float> b) { return vsubq_f32(a.v, b.v); }
MLP_INLINE Vec<float> operator*(Vec<float> a, Vec<float> b) { return vmulq_f32(a.v, b.v); }
MLP_INLINE Vec<float> operator/(Vec<float> a, Vec<float> b) { return vdivq_f32(a.v, b.v); }
MLP_INLINE Vec<float> operator-(Vec<float> a) { return vnegq_f32(a.v); }
MLP_INLINE uint32x4_t operator<(Vec<float> a, Vec<float> b) { return vcltq_f32(a.v, b.v); }
MLP_INLINE uint32x4_t operator<=(Vec<float> a, Vec<float> b) { return vcleq_f32(a.v, b.v); }
MLP_INLINE uint32x4_t operator>(Vec<float> a, Vec<float> b) { return vcgtq_f32(a.v, b.v); }
MLP_INLINE uint32x4_t operator==(Vec<float> a, Vec<float> b) { return vceqq_f32(a.v, b.v); }
MLP_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return vfmaq_f32(c.v, a.v, b.v);
}
MLP_INLINE Vec<float> select(uint32x4_t m, Vec<float> a, Vec<float> b) {
  return vbslq_f32(m, a.v, b.v);
}
MLP_INLINE Vec<float> max(Vec<float> a, Vec<float> b) { return vmaxq_f32(a.v, b.v); }
MLP_INLINE Vec<float> min(Vec<float> a, Vec<float> b) { return vminq_f32(a.v, b.v); }
MLP_INLINE Vec<float> sqrt(Vec<float> a) { return vsqrtq_f32(a.v); }
MLP_INLINE Vec<float> abs(Vec<float> a) { return vabsq_f32(a.v); }
MLP_INLINE Vec<float> round(Vec<float> a) { return vrndnq_f32(a.v); }
MLP_INLINE Vec<float> with_sign_of(Vec<float> x, Vec<float> y) {
  return vbslq_f32(vdupq_n_u32(0x80000000u), x.v, y.v);
}
MLP_INLINE float32x4_t power_of_two(int32x4_t n) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
}
MLP_INLINE Vec<float> exponent_of_low_bits(Vec<float> a) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vreinterpretq_s32_f32(a.v), 23));
}
// In two factors, so that n may leave the range of one exponent (|n| <= 252).
MLP_INLINE Vec<float> scale2(Vec<float> a, Vec<float> n) {
  const int32x4_t whole = vcvtnq_s32_f32(n.v);
  const int32x4_t half = vshrq_n_s32(whole, 1);
  const float32x4_t once = vmulq_f32(a.v, power_of_two(half));
  return vmulq_f32(once, power_of_two(vsubq_s32(whole, half)));
}
MLP_INLINE float reduce_add(Vec<float> a) { return vaddvq_f32(a.v); }
MLP_INLINE float reduce_max(Vec<float> a) { return vmaxvq_f32(a.v); }

MLP_INLINE void transpose(Vec<float> (&r)[4]) {
  const float32x4x2_t a = vtrnq_f32(r[0].v, r[1].v), b = vtrnq_f32(r[2].v, r[3].v);
  r[0] = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
  r[1] = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
  r[2] = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
  r[3] = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
}

template <>
struct Vec<double> {
  using Mask = uint64x2_t;
  static constexpr int kWidth = 2;
  static constexpr bool kPolynomials = false;

  float64x2_t v;

  Vec() = default;
  MLP_INLINE Vec(float64x2_t x) : v(x) {}
  MLP_INLINE explicit Vec(double x) : v(vdupq_n_f64(x)) {}
  static MLP_INLINE Mask first(int64_t n) {
    const uint64_t lanes[2] = {n > 0 ? ~uint64_t{0} : 0, n > 1 ? ~uint64_t{0} : 0};
    return vld1q_u64(lanes);
  }
  static MLP_INLINE bool second(Mask m) { return vgetq_lane_u64(m, 1) != 0; }
  static MLP_INLINE Vec load(const double* p) { return vld1q_f64(p); }
  static MLP_INLINE Vec load(const double* p, Mask m) {
    if (second(m)) return vld1q_f64(p);
    const double lanes[2] = {vgetq_lane_u64(m, 0) ? *p : 0.0, 0.0};
    return vld1q_f64(lanes);
  }
  MLP_INLINE void store(double* p) const { vst1q_f64(p, v); }
  MLP_INLINE void store(double* p, Mask m) const {
    if (second(m)) return vst1q_f64(p, v);
    if (vgetq_lane_u64(m, 0)) *p = vgetq_lane_f64(v, 0);
  }
};

MLP_INLINE Vec<double> operator+(Vec<double> a, Vec<double> b) { return vaddq_f64(a.v, b.v); }
MLP_INLINE Vec<double> operator-(Vec<double> a, Vec<double> b) { return vsubq_f64(a.v, b.v); }
MLP_INLINE Vec<double> operator*(Vec<double> a, Vec<double> b) { return vmulq_f64(a.v, b.v); }
MLP_INLINE Vec<double> operator/(Vec<double> a, Vec<double> b) { return vdivq_f64(a.v, b.v); }
MLP_INLINE Vec<double> operator-(Vec<double> a) { return vnegq_f64(a.v); }
MLP_INLINE uint64x2_t operator<(Vec<double> a, Vec<double> b) { return vcltq_f64(a.v, b.v); }
MLP_INLINE uint64x2_t operator<=(Vec<double> a, Vec<double> b) { return vcleq_f64(a.v, b.v); }
MLP_INLINE uint64x2_t operator>(Vec<double> a, Vec<double> b) { return vcgtq_f64(a.v, b.v); }
MLP_INLINE uint64x2_t operator==(Vec<double> a, Vec<double> b) { return vceqq_f64(a.v, b.v); }
MLP_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return vfmaq_f64(c.v, a.v, b.v);
}
MLP_INLINE Vec<double> select(uint64x2_t m, Vec<double> a, Vec<double> b) {
  return vbslq_f64(m, a.v, b.v);
}
MLP_INLINE Vec<double> max(Vec<double> a, Vec<double> b) { return vmaxq_f64(a.v, b.v); }
MLP_INLINE Vec<double> min(Vec<double> a, Vec<double> b) { return vminq_f64(a.v, b.v); }
MLP_INLINE Vec<double> sqrt(Vec<double> a) { return vsqrtq_f64(a.v); }
MLP_INLINE Vec<double> abs(Vec<double> a) { return vabsq_f64(a.v); }
MLP_INLINE double reduce_add(Vec<double> a) { return vaddvq_f64(a.v); }
MLP_INLINE double reduce_max(Vec<double> a) { return vmaxvq_f64(a.v); }

MLP_INLINE void transpose(Vec<double> (&r)[2]) {
  const float64x2_t low = vtrn1q_f64(r[0].v, r[1].v), high = vtrn2q_f64(r[0].v, r[1].v);
  r[0] = low;
  r[1] = high;
}

// 6 x 4 accumulators + 4 of B + 1 broadcast of A = 29 of 32 registers.
template <class T>
struct Tile {
  static constexpr int64_t kRows = 6;
  static constexpr int kPanelVectors = 4, kRegisters = 32;
  static constexpr int64_t kKC = 256;
  static constexpr int64_t kMostDotRows = 8;
};

MLP_NAMESPACE_END
