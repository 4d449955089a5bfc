// The product against a B that runs along n, where C is written row by row from end to end: a sum
// of outer products of kOuterK values of k each. For few k (a weight gradient at batch 1 to 8) C is
// all the traffic there is, and the microkernel would scatter short pieces of it; for one row (dX
// at batch 1) it is B, of which the microkernel would read short pieces a page apart (1 x 1024 x
// 1024 on Sapphire Rapids, AVX2: 5 GFLOP/s there, 15 here).

MLP_NAMESPACE_BEGIN

constexpr int64_t kOuterK = 8;

// NV vectors of one row of C, the last one cut to `tail` if kCut: the sum over k in [begin, end),
// added to what is there if begin > 0.
template <class T, int NV, bool kCut>
MLP_INLINE void outer_strip(const GemmArgs<T>& g, const T* a, const T* b, Range k,
                            typename Vec<T>::Mask tail, T* c) {
  using V = Vec<T>;
  V sum[NV];
  MLP_UNROLL
  for (int j = 0; j < NV; ++j) sum[j] = V(T(0));
  for (int64_t i = k.begin; i < k.end; ++i) {
    const V element(a[i * g.a_col]);
    const T* row = b + i * g.b_row;
    MLP_UNROLL
    for (int j = 0; j < NV; ++j) {
      sum[j] = fma(element, load_of_tile<NV>(row, j, kCut, tail), sum[j]);
    }
  }
  if (k.begin > 0) {
    MLP_UNROLL
    for (int j = 0; j < NV; ++j) sum[j] = load_of_tile<NV>(c, j, kCut, tail) + sum[j];
  }
  MLP_UNROLL
  for (int j = 0; j < NV - int(kCut); ++j) sum[j].store(c + j * V::kWidth);
  if constexpr (kCut) sum[NV - 1].store(c + (NV - 1) * V::kWidth, tail);
}

template <class T>
bool prefers_outer(const GemmArgs<T>& g, Range m, Range n) {
  constexpr int64_t kLeastVectors = 16;
  if (g.b_col != 1 || g.bias) return false;
  const bool is_row = m.size() == 1 && n.size() >= kLeastVectors * Vec<T>::kWidth;
  return g.activation == Activation::none ? g.K <= kOuterK || is_row : is_row && g.saved;
}

template <class T>
void gemm_outer(const GemmArgs<T>& g, Range m, Range n) {
  using V = Vec<T>;
  constexpr int kVectors = 8;
  constexpr int64_t kStrip = kVectors * V::kWidth;
  for (int64_t begin = 0; begin == 0 || begin < g.K; begin += kOuterK) {  // of K = 0 zeros
    const Range k{begin, std::min(g.K, begin + kOuterK)};
    for (int64_t i = m.begin; i < m.end; ++i) {
      const T* a = g.a + i * g.a_row;
      T* c = g.c + i * g.ldc;
      int64_t j = n.begin;
      for (; j + kStrip <= n.end; j += kStrip) {
        outer_strip<T, kVectors, false>(g, a, g.b + j, k, V::first(0), c + j);
      }
      for (; j < n.end; j += V::kWidth) {
        outer_strip<T, 1, true>(g, a, g.b + j, k, V::first(n.end - j), c + j);
      }
    }
  }
  if (g.activation != Activation::none) {
    finish_tile(g, m.begin, n.begin, m.size(), n.size());
  }
}

MLP_NAMESPACE_END
