// Pairs: 16 pairs of bfloat16 in a register of AVX-512, and their dot product (VDPBF16PS): sums of
// two products of bfloat16 each, in float32. Twice the multiply-adds of float32 a cycle.

MLP_NAMESPACE_BEGIN

// Two bfloat16 that follow each other in k, as they lie in memory.
using Pair = uint32_t;

struct Pairs {
  static constexpr int kCount = 16;

  __m512i v;

  Pairs() = default;
  MLP_INLINE Pairs(__m512i x) : v(x) {}
  static MLP_INLINE Pairs zero() { return _mm512_setzero_si512(); }
  static MLP_INLINE Pairs broadcast(const Pair* p) {
    return _mm512_set1_epi32(static_cast<int>(*p));
  }
  static MLP_INLINE Pairs load(const Pair* p) { return _mm512_loadu_si512(p); }
  MLP_INLINE void store(Pair* p, __mmask16 lanes) const { _mm512_mask_storeu_epi32(p, lanes, v); }

  // The first n (at most 32) elements of a row, zeros beyond.
  static MLP_INLINE Pairs load_row(const BFloat16* p, int64_t n) {
    const __mmask32 lanes = n >= 32 ? ~__mmask32{0} : (__mmask32{1} << n) - 1;
    return _mm512_maskz_loadu_epi16(lanes, p);
  }
  // (even[i], odd[i]) of the lanes given; `odd` may be null for zeros.
  static MLP_INLINE Pairs interleave(const BFloat16* even, const BFloat16* odd, __mmask16 lanes) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, even));
    if (!odd) return low;
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, odd));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
  }
};

MLP_INLINE Vec<float> dot2(Pairs a, Pairs b, Vec<float> c) {
  return _mm512_dpbf16_ps(c.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v));
}

MLP_INLINE void transpose(Pairs (&r)[16]) {
  Vec<float> block[16];
  MLP_UNROLL
  for (int i = 0; i < 16; ++i) block[i].v = _mm512_castsi512_ps(r[i].v);
  transpose(block);
  MLP_UNROLL
  for (int i = 0; i < 16; ++i) r[i].v = _mm512_castps_si512(block[i].v);
}

MLP_NAMESPACE_END
