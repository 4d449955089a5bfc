// Vec of AVX-512 (F, BW, VL, DQ): 16 float or 8 double lanes; masks are registers of their own, so
// a partial vector costs what a whole one does.

MLP_NAMESPACE_BEGIN

template <class T>
struct Vec;

template <>
struct Vec<float> {
  using Mask = __mmask16;
  static constexpr int kWidth = 16;
  static constexpr bool kPolynomials = true;

  __m512 v;

  Vec() = default;
  MLP_INLINE Vec(__m512 x) : v(x) {}
  MLP_INLINE explicit Vec(float x) : v(_mm512_set1_ps(x)) {}
  static MLP_INLINE Mask first(int64_t n) { return n >= 16 ? Mask(0xffff) : Mask((1u << n) - 1); }
  static MLP_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
  static MLP_INLINE Vec load(const float* p, Mask m) { return _mm512_maskz_loadu_ps(m, p); }
  static MLP_INLINE Vec load(const BFloat16* p, Mask m) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static MLP_INLINE Vec load(const Float16* p, Mask m) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, p));
  }
  MLP_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
  MLP_INLINE void store(float* p, Mask m) const { _mm512_mask_storeu_ps(p, m, v); }
  MLP_INLINE void store(BFloat16* p, Mask m) const {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    _mm256_mask_storeu_epi16(p, m, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }
  MLP_INLINE void store(Float16* p, Mask m) const {
    _mm256_mask_storeu_epi16(p, m, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
};

// For a loaded value that is used more than once: GCC would read it again each time, as an operand
// in memory (dX of 3 x 256 x 256, AVX-512 on Sapphire Rapids: 65 GFLOP/s so, 129 kept).
template <class T>
MLP_INLINE void keep_in_register(Vec<T>& a) {
  __asm__("" : "+v"(a.v));
}
MLP_INLINE Vec<float> operator+(Vec<float> a, Vec<float> b) { return _mm512_add_ps(a.v, b.v); }
MLP_INLINE Vec<float> operator-(Vec<float> a, Vec<float> b) { return _mm512_sub_ps(a.v, b.v); }
MLP_INLINE Vec<float> operator*(Vec<float> a, Vec<float> b) { return _mm512_mul_ps(a.v, b.v); }
MLP_INLINE Vec<float> operator/(Vec<float> a, Vec<float> b) { return _mm512_div_ps(a.v, b.v); }
MLP_INLINE Vec<float> operator-(Vec<float> a) { return _mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f)); }
MLP_INLINE __mmask16 operator<(Vec<float> a, Vec<float> b) {
  return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ);
}
MLP_INLINE __mmask16 operator<=(Vec<float> a, Vec<float> b) {
  return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ);
}
MLP_INLINE __mmask16 operator>(Vec<float> a, Vec<float> b) {
  return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ);
}
MLP_INLINE __mmask16 operator==(Vec<float> a, Vec<float> b) {
  return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ);
}
MLP_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return _mm512_fmadd_ps(a.v, b.v, c.v);
}
MLP_INLINE Vec<float> max(Vec<float> a, Vec<float> b) { return _mm512_max_ps(a.v, b.v); }
MLP_INLINE Vec<float> min(Vec<float> a, Vec<float> b) { return _mm512_min_ps(a.v, b.v); }
MLP_INLINE Vec<float> sqrt(Vec<float> a) { return _mm512_sqrt_ps(a.v); }
MLP_INLINE Vec<float> abs(Vec<float> a) { return _mm512_abs_ps(a.v); }
MLP_INLINE Vec<float> round(Vec<float> a) {
  return _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
MLP_INLINE Vec<float> with_sign_of(Vec<float> x, Vec<float> y) {
  return _mm512_or_ps(y.v, _mm512_and_ps(x.v, _mm512_set1_ps(-0.0f)));
}
MLP_INLINE Vec<float> exponent_of_low_bits(Vec<float> a) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a.v), 23));
}
MLP_INLINE Vec<float> scale2(Vec<float> a, Vec<float> n) { return _mm512_scalef_ps(a.v, n.v); }
MLP_INLINE Vec<float> select(__mmask16 m, Vec<float> a, Vec<float> b) {
  return _mm512_mask_blend_ps(m, b.v, a.v);
}
MLP_INLINE float reduce_add(Vec<float> a) { return _mm512_reduce_add_ps(a.v); }
MLP_INLINE __m256 add_halves(Vec<float> a) {
  return _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
}
MLP_INLINE void sums_of_4(const Vec<float> (&x)[4], float* sums) {
  const __m256 pairs01 = _mm256_hadd_ps(add_halves(x[0]), add_halves(x[1]));
  const __m256 pairs23 = _mm256_hadd_ps(add_halves(x[2]), add_halves(x[3]));
  const __m256 halves = _mm256_hadd_ps(pairs01, pairs23);
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
}
MLP_INLINE float reduce_max(Vec<float> a) { return _mm512_reduce_max_ps(a.v); }

MLP_INLINE void transpose(Vec<float> (&r)[16]) {
  __m512 a[16], b[16];
  MLP_UNROLL
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(r[i].v, r[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
  }
  // b[4 q + j]: in each 128-bit lane, element j of that lane of rows 4 q .. 4 q + 3.
  MLP_UNROLL
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm512_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  MLP_UNROLL
  for (int j = 0; j < 4; ++j) {
    const __m512 low01 = _mm512_shuffle_f32x4(b[j], b[j + 4], 0x88);
    const __m512 high01 = _mm512_shuffle_f32x4(b[j], b[j + 4], 0xdd);
    const __m512 low23 = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0x88);
    const __m512 high23 = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0xdd);
    r[j] = _mm512_shuffle_f32x4(low01, low23, 0x88);
    r[j + 4] = _mm512_shuffle_f32x4(high01, high23, 0x88);
    r[j + 8] = _mm512_shuffle_f32x4(low01, low23, 0xdd);
    r[j + 12] = _mm512_shuffle_f32x4(high01, high23, 0xdd);
  }
}

template <>
struct Vec<double> {
  using Mask = __mmask8;
  static constexpr int kWidth = 8;
  static constexpr bool kPolynomials = false;

  __m512d v;

  Vec() = default;
  MLP_INLINE Vec(__m512d x) : v(x) {}
  MLP_INLINE explicit Vec(double x) : v(_mm512_set1_pd(x)) {}
  static MLP_INLINE Mask first(int64_t n) { return n >= 8 ? Mask(0xff) : Mask((1u << n) - 1); }
  static MLP_INLINE Vec load(const double* p) { return _mm512_loadu_pd(p); }
  static MLP_INLINE Vec load(const double* p, Mask m) { return _mm512_maskz_loadu_pd(m, p); }
  MLP_INLINE void store(double* p) const { _mm512_storeu_pd(p, v); }
  MLP_INLINE void store(double* p, Mask m) const { _mm512_mask_storeu_pd(p, m, v); }
};

MLP_INLINE Vec<double> operator+(Vec<double> a, Vec<double> b) { return _mm512_add_pd(a.v, b.v); }
MLP_INLINE Vec<double> operator-(Vec<double> a, Vec<double> b) { return _mm512_sub_pd(a.v, b.v); }
MLP_INLINE Vec<double> operator*(Vec<double> a, Vec<double> b) { return _mm512_mul_pd(a.v, b.v); }
MLP_INLINE Vec<double> operator/(Vec<double> a, Vec<double> b) { return _mm512_div_pd(a.v, b.v); }
MLP_INLINE Vec<double> operator-(Vec<double> a) { return _mm512_xor_pd(a.v, _mm512_set1_pd(-0.0)); }
MLP_INLINE __mmask8 operator<(Vec<double> a, Vec<double> b) {
  return _mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ);
}
MLP_INLINE __mmask8 operator<=(Vec<double> a, Vec<double> b) {
  return _mm512_cmp_pd_mask(a.v, b.v, _CMP_LE_OQ);
}
MLP_INLINE __mmask8 operator>(Vec<double> a, Vec<double> b) {
  return _mm512_cmp_pd_mask(a.v, b.v, _CMP_GT_OQ);
}
MLP_INLINE __mmask8 operator==(Vec<double> a, Vec<double> b) {
  return _mm512_cmp_pd_mask(a.v, b.v, _CMP_EQ_OQ);
}
MLP_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return _mm512_fmadd_pd(a.v, b.v, c.v);
}
MLP_INLINE Vec<double> max(Vec<double> a, Vec<double> b) { return _mm512_max_pd(a.v, b.v); }
MLP_INLINE Vec<double> min(Vec<double> a, Vec<double> b) { return _mm512_min_pd(a.v, b.v); }
MLP_INLINE Vec<double> sqrt(Vec<double> a) { return _mm512_sqrt_pd(a.v); }
MLP_INLINE Vec<double> abs(Vec<double> a) { return _mm512_abs_pd(a.v); }
MLP_INLINE Vec<double> select(__mmask8 m, Vec<double> a, Vec<double> b) {
  return _mm512_mask_blend_pd(m, b.v, a.v);
}
MLP_INLINE double reduce_add(Vec<double> a) { return _mm512_reduce_add_pd(a.v); }
MLP_INLINE double reduce_max(Vec<double> a) { return _mm512_reduce_max_pd(a.v); }

MLP_INLINE void transpose(Vec<double> (&r)[8]) {
  __m512d a[8];
  MLP_UNROLL
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm512_unpacklo_pd(r[i].v, r[i + 1].v);
    a[i + 1] = _mm512_unpackhi_pd(r[i].v, r[i + 1].v);
  }
  MLP_UNROLL
  for (int j = 0; j < 2; ++j) {
    const __m512d even01 = _mm512_shuffle_f64x2(a[j], a[j + 2], 0x88);
    const __m512d odd01 = _mm512_shuffle_f64x2(a[j], a[j + 2], 0xdd);
    const __m512d even23 = _mm512_shuffle_f64x2(a[j + 4], a[j + 6], 0x88);
    const __m512d odd23 = _mm512_shuffle_f64x2(a[j + 4], a[j + 6], 0xdd);
    r[j] = _mm512_shuffle_f64x2(even01, even23, 0x88);
    r[j + 2] = _mm512_shuffle_f64x2(odd01, odd23, 0x88);
    r[j + 4] = _mm512_shuffle_f64x2(even01, even23, 0xdd);
    r[j + 6] = _mm512_shuffle_f64x2(odd01, odd23, 0xdd);
  }
}

// 14 x 2 accumulators + 2 of B + 1 broadcast of A = 31 of 32 registers. KC = 384: a panel of B is
// 48 KiB of float and comes from L2, which costs less than the C traffic of a shorter one (84 % of
// the peak at 256, 86 at 384, 87 at 512; 1024^3 on Zen 4); the error stays at 1.4 times MKL's at
// most (M=112, N=256, K=384), where 512 would sum longer chains yet.
template <class T>
struct Tile {
  static constexpr int64_t kRows = 14;
  static constexpr int kPanelVectors = 2, kRegisters = 32;
  static constexpr int64_t kKC = 384;
  static constexpr int64_t kMostDotRows = 8;   // gemm_dot.h
  static constexpr double kTurningCost = 0.4;  // gemm_swapped.h
};

MLP_NAMESPACE_END
