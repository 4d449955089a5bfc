// Vec of AVX2 + FMA + F16C: 8 float or 4 double lanes; masks are vectors of all-ones lanes.

MLP_NAMESPACE_BEGIN

template <class T>
struct Vec;

// The first n of 8 (or 4) lanes all ones: a window into ones followed by zeros.
alignas(32) constexpr int32_t kOnesThenZeros32[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
alignas(32) constexpr int64_t kOnesThenZeros64[8] = {-1, -1, -1, -1};

MLP_INLINE __m128i load_first_u16(const void* p, int64_t n) {
  if (n == 8) return _mm_loadu_si128(static_cast<const __m128i*>(p));
  uint16_t lanes[8] = {};
  std::memcpy(lanes, p, n * sizeof(uint16_t));
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(lanes));
}
MLP_INLINE void store_first_u16(void* p, int64_t n, __m128i v) {
  if (n == 8) return _mm_storeu_si128(static_cast<__m128i*>(p), v);
  uint16_t lanes[8];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(lanes), v);
  std::memcpy(p, lanes, n * sizeof(uint16_t));
}

template <>
struct Vec<float> {
  using Mask = __m256;
  static constexpr int kWidth = 8;
  static constexpr bool kPolynomials = true;

  __m256 v;

  Vec() = default;
  MLP_INLINE Vec(__m256 x) : v(x) {}
  MLP_INLINE explicit Vec(float x) : v(_mm256_set1_ps(x)) {}
  static MLP_INLINE Mask first(int64_t n) {
    const int64_t lanes = n >= 8 ? 8 : n;
    return _mm256_loadu_ps(reinterpret_cast<const float*>(kOnesThenZeros32 + 8 - lanes));
  }
  static MLP_INLINE int count(Mask m) { return __builtin_popcount(_mm256_movemask_ps(m)); }
  static MLP_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
  static MLP_INLINE Vec load(const float* p, Mask m) {
    return _mm256_maskload_ps(p, _mm256_castps_si256(m));
  }
  static MLP_INLINE Vec load(const BFloat16* p, Mask m) {
    const __m256i wide = _mm256_cvtepu16_epi32(load_first_u16(p, count(m)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static MLP_INLINE Vec load(const Float16* p, Mask m) {
    return _mm256_cvtph_ps(load_first_u16(p, count(m)));
  }
  MLP_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
  // `m` is one of first(). In pieces of 4, 2 and 1 lanes: a masked store is microcoded on AMD
  // before and after AVX-512 (Zen 1 to 4: 42 micro-ops, uops.info).
  MLP_INLINE void store(float* p, Mask m) const {
    int lanes = _mm256_movemask_ps(m);
    if (lanes == 0xff) return store(p);
    __m128 rest = _mm256_castps256_ps128(v);
    if (lanes & 8) {
      _mm_storeu_ps(p, rest);
      p += 4, lanes >>= 4;
      rest = _mm256_extractf128_ps(v, 1);
    }
    if (lanes & 2) {
      _mm_storel_pi(reinterpret_cast<__m64*>(p), rest);
      p += 2, lanes >>= 2;
      rest = _mm_movehl_ps(rest, rest);
    }
    if (lanes & 1) _mm_store_ss(p, rest);
  }
  MLP_INLINE void store(BFloat16* p, Mask m) const {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    const __m128i packed =
        _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    store_first_u16(p, count(m), packed);
  }
  MLP_INLINE void store(Float16* p, Mask m) const {
    store_first_u16(p, count(m), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
};

// For a loaded value that is used more than once: GCC would read it again each time, as an operand
// in memory.
template <class T>
MLP_INLINE void keep_in_register(Vec<T>& a) {
  __asm__("" : "+x"(a.v));
}
MLP_INLINE Vec<float> operator+(Vec<float> a, Vec<float> b) { return _mm256_add_ps(a.v, b.v); }
MLP_INLINE Vec<float> operator-(Vec<float> a, Vec<float> b) { return _mm256_sub_ps(a.v, b.v); }
MLP_INLINE Vec<float> operator*(Vec<float> a, Vec<float> b) { return _mm256_mul_ps(a.v, b.v); }
MLP_INLINE Vec<float> operator/(Vec<float> a, Vec<float> b) { return _mm256_div_ps(a.v, b.v); }
MLP_INLINE Vec<float> operator-(Vec<float> a) { return _mm256_xor_ps(a.v, _mm256_set1_ps(-0.0f)); }
MLP_INLINE __m256 operator<(Vec<float> a, Vec<float> b) {
  return _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ);
}
MLP_INLINE __m256 operator<=(Vec<float> a, Vec<float> b) {
  return _mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ);
}
MLP_INLINE __m256 operator>(Vec<float> a, Vec<float> b) {
  return _mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ);
}
MLP_INLINE __m256 operator==(Vec<float> a, Vec<float> b) {
  return _mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ);
}
MLP_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return _mm256_fmadd_ps(a.v, b.v, c.v);
}
MLP_INLINE Vec<float> max(Vec<float> a, Vec<float> b) { return _mm256_max_ps(a.v, b.v); }
MLP_INLINE Vec<float> min(Vec<float> a, Vec<float> b) { return _mm256_min_ps(a.v, b.v); }
MLP_INLINE Vec<float> sqrt(Vec<float> a) { return _mm256_sqrt_ps(a.v); }
MLP_INLINE Vec<float> abs(Vec<float> a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v); }
MLP_INLINE Vec<float> with_sign_of(Vec<float> x, Vec<float> y) {
  return _mm256_or_ps(y.v, _mm256_and_ps(x.v, _mm256_set1_ps(-0.0f)));
}
MLP_INLINE Vec<float> round(Vec<float> a) {
  return _mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
MLP_INLINE __m256 power_of_two(__m256i n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
MLP_INLINE Vec<float> exponent_of_low_bits(Vec<float> a) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a.v), 23));
}
// In two factors, so that n may leave the range of one exponent (|n| <= 252). A NaN in n becomes
// an arbitrary factor; `a` is then NaN as well.
MLP_INLINE Vec<float> scale2(Vec<float> a, Vec<float> n) {
  const __m256i whole = _mm256_cvtps_epi32(n.v);
  const __m256i half = _mm256_srai_epi32(whole, 1);
  const __m256 once = _mm256_mul_ps(a.v, power_of_two(half));
  return _mm256_mul_ps(once, power_of_two(_mm256_sub_epi32(whole, half)));
}
MLP_INLINE Vec<float> select(__m256 m, Vec<float> a, Vec<float> b) {
  return _mm256_blendv_ps(b.v, a.v, m);
}
MLP_INLINE float reduce_add(Vec<float> a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
MLP_INLINE void sums_of_4(const Vec<float> (&x)[4], float* sums) {
  const __m256 pairs01 = _mm256_hadd_ps(x[0].v, x[1].v), pairs23 = _mm256_hadd_ps(x[2].v, x[3].v);
  const __m256 halves = _mm256_hadd_ps(pairs01, pairs23);
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
}
MLP_INLINE float reduce_max(Vec<float> a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

MLP_INLINE void transpose(Vec<float> (&r)[8]) {
  __m256 a[8], b[8];
  MLP_UNROLL
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(r[i].v, r[i + 1].v);
    a[i + 1] = _mm256_unpackhi_ps(r[i].v, r[i + 1].v);
  }
  MLP_UNROLL
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  MLP_UNROLL
  for (int j = 0; j < 4; ++j) {
    r[j] = _mm256_permute2f128_ps(b[j], b[j + 4], 0x20);
    r[j + 4] = _mm256_permute2f128_ps(b[j], b[j + 4], 0x31);
  }
}

template <>
struct Vec<double> {
  using Mask = __m256d;
  static constexpr int kWidth = 4;
  static constexpr bool kPolynomials = false;

  __m256d v;

  Vec() = default;
  MLP_INLINE Vec(__m256d x) : v(x) {}
  MLP_INLINE explicit Vec(double x) : v(_mm256_set1_pd(x)) {}
  static MLP_INLINE Mask first(int64_t n) {
    const int64_t lanes = n >= 4 ? 4 : n;
    return _mm256_loadu_pd(reinterpret_cast<const double*>(kOnesThenZeros64 + 4 - lanes));
  }
  static MLP_INLINE Vec load(const double* p) { return _mm256_loadu_pd(p); }
  static MLP_INLINE Vec load(const double* p, Mask m) {
    return _mm256_maskload_pd(p, _mm256_castpd_si256(m));
  }
  MLP_INLINE void store(double* p) const { _mm256_storeu_pd(p, v); }
  // In pieces, as of float.
  MLP_INLINE void store(double* p, Mask m) const {
    int lanes = _mm256_movemask_pd(m);
    if (lanes == 0xf) return store(p);
    __m128d rest = _mm256_castpd256_pd128(v);
    if (lanes & 2) {
      _mm_storeu_pd(p, rest);
      p += 2, lanes >>= 2;
      rest = _mm256_extractf128_pd(v, 1);
    }
    if (lanes & 1) _mm_store_sd(p, rest);
  }
};

MLP_INLINE Vec<double> operator+(Vec<double> a, Vec<double> b) { return _mm256_add_pd(a.v, b.v); }
MLP_INLINE Vec<double> operator-(Vec<double> a, Vec<double> b) { return _mm256_sub_pd(a.v, b.v); }
MLP_INLINE Vec<double> operator*(Vec<double> a, Vec<double> b) { return _mm256_mul_pd(a.v, b.v); }
MLP_INLINE Vec<double> operator/(Vec<double> a, Vec<double> b) { return _mm256_div_pd(a.v, b.v); }
MLP_INLINE Vec<double> operator-(Vec<double> a) { return _mm256_xor_pd(a.v, _mm256_set1_pd(-0.0)); }
MLP_INLINE __m256d operator<(Vec<double> a, Vec<double> b) {
  return _mm256_cmp_pd(a.v, b.v, _CMP_LT_OQ);
}
MLP_INLINE __m256d operator<=(Vec<double> a, Vec<double> b) {
  return _mm256_cmp_pd(a.v, b.v, _CMP_LE_OQ);
}
MLP_INLINE __m256d operator>(Vec<double> a, Vec<double> b) {
  return _mm256_cmp_pd(a.v, b.v, _CMP_GT_OQ);
}
MLP_INLINE __m256d operator==(Vec<double> a, Vec<double> b) {
  return _mm256_cmp_pd(a.v, b.v, _CMP_EQ_OQ);
}
MLP_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return _mm256_fmadd_pd(a.v, b.v, c.v);
}
MLP_INLINE Vec<double> max(Vec<double> a, Vec<double> b) { return _mm256_max_pd(a.v, b.v); }
MLP_INLINE Vec<double> min(Vec<double> a, Vec<double> b) { return _mm256_min_pd(a.v, b.v); }
MLP_INLINE Vec<double> sqrt(Vec<double> a) { return _mm256_sqrt_pd(a.v); }
MLP_INLINE Vec<double> abs(Vec<double> a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a.v); }
MLP_INLINE Vec<double> select(__m256d m, Vec<double> a, Vec<double> b) {
  return _mm256_blendv_pd(b.v, a.v, m);
}
MLP_INLINE double reduce_add(Vec<double> a) {
  const __m128d x = _mm_add_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(x, _mm_unpackhi_pd(x, x)));
}
MLP_INLINE double reduce_max(Vec<double> a) {
  const __m128d x = _mm_max_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
  return _mm_cvtsd_f64(_mm_max_sd(x, _mm_unpackhi_pd(x, x)));
}

MLP_INLINE void transpose(Vec<double> (&r)[4]) {
  const __m256d a = _mm256_unpacklo_pd(r[0].v, r[1].v), b = _mm256_unpackhi_pd(r[0].v, r[1].v);
  const __m256d c = _mm256_unpacklo_pd(r[2].v, r[3].v), d = _mm256_unpackhi_pd(r[2].v, r[3].v);
  r[0] = _mm256_permute2f128_pd(a, c, 0x20);
  r[1] = _mm256_permute2f128_pd(b, d, 0x20);
  r[2] = _mm256_permute2f128_pd(a, c, 0x31);
  r[3] = _mm256_permute2f128_pd(b, d, 0x31);
}

// 6 x 2 accumulators + 2 of B + 1 broadcast of A = 15 of 16 registers. KC 128, as for a small C
// (block_depth), would cost 8 % at 1024^3 on Zen 4, and nothing on Sapphire Rapids.
template <class T>
struct Tile {
  static constexpr int64_t kRows = 6;
  static constexpr int kPanelVectors = 2, kRegisters = 16;
  static constexpr int64_t kKC = 256;
  static constexpr int64_t kMostDotRows = sizeof(T) == sizeof(float) ? 5 : 8;  // gemm_dot.h
  static constexpr double kTurningCost = 1.5;                                  // gemm_swapped.h
};

MLP_NAMESPACE_END
